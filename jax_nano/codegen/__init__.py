"""From a plan to an MLIR module. In processing order:

    module.py                       a public function for every phase of a plan
    macrokernel.py                  phases, tasks and cache blocks: the loop nest around microkernels
        operands.py                 where A, B, C and the other arrays lie
        panels.py                   which panels are packed, by whom and where; pack.py copies them
        prefetch_targets.py         what is prefetched beside a microkernel; prefetch.py does it at an even rate
    microkernel.py                  the loop over K on one register block, and its contract
        tile_microkernel.py         the same contract on register tiles
        dot_product_microkernel.py  the same contract with K along the lanes
        nanokernel.py               the update of a register block by one instruction
        operand_loader.py           elements of A and B as that instruction wants them
        epilogue.py                 what is done to sums before they are stored in C
    matrix_ref.py                   a matrix in memory
        dequantize.py, prologue.py  matrices that are computed where they are read
    vector/                         arithmetic, conversions, elementary functions, elementwise programs

Beside the macrokernel of a product, around the same microkernels:

    windows/                        operands that are windows over an image
    gated.py, grouped/              two products that are multiplied; products of groups of rows
    attention/                      attention and its gradients
    pipelines/                      loops and small programs

The words that all are written in: index, loops, load_store, registers, shuffles, intrinsics, types, location.

Where another kind of kernel finds its room: operands that are read otherwise (padded, gathered, masked) are a MatrixRef
with a `load_row` and a `block` of its own; what is done to sums is an `Epilogue`, which is told their places in C; what
goes on beside products is a `StepHook`; `Span` and `Depth` take ends that are known only at run time; several products
in a row, or work that finds out about tasks first, are phases beside those of `Macrokernel`.
"""
