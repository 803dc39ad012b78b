"""What a plan costs: plain arithmetic on facts about a processor, without JAX or MLIR."""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.isa import Core, DotInstruction, Isa


@dataclass(frozen=True)
class RegisterBlock:
    """The block of C that stays in registers: `rows` x `cols` elements."""

    rows: int
    cols: int
    hold_lhs: bool  # all of A's rows are held and B streams, rather than the reverse


def step_cycles(core: Core, instruction: DotInstruction, rows: int, registers: int) -> float:
    """Cycles of one step of k on a block of rows x registers accumulators.

    rows * registers multiply-accumulates are fed by rows loads of A and registers of B; each accumulator waits for its
    own last update.

    Source: Low et al., "Analytical Modeling Is Enough for High-Performance BLIS", ACM TOMS 43(2), 2016.
    """
    dots, loads = rows * registers, rows + registers
    per_cycle, latency = core.rate(instruction.name)
    return max(
        dots / per_cycle,
        loads / core.loads_per_cycle,
        latency,
        (dots + loads + 1) / core.issue_per_cycle,
    )


def block_cycles(core: Core, instruction: DotInstruction, rows: int, registers: int, steps: int) -> float:
    """Cycles of a microkernel: its loop, and the accumulators cleared before and stored after."""
    return steps * step_cycles(core, instruction, rows, registers) + rows * registers / core.stores_per_cycle + BLOCK_OVERHEAD_CYCLES


# Branches, addresses and the drained pipeline between one microkernel and the next.
BLOCK_OVERHEAD_CYCLES = 20


def register_block(isa: Isa, core: Core, instruction: DotInstruction, m: int, n: int, k: int) -> RegisterBlock:
    """Chooses how many accumulators stay in registers, for C of m x n: the block whose panels take the fewest cycles.

    Either n registers of B and one of A are live beside the accumulators, or m of A and one of B.

    Raises:
      ValueError: the target has fewer than 3 registers.
    """
    if isa.register_count < 3:
        raise ValueError(f"{isa.name} has {isa.register_count} registers; a block needs at least 3")
    lanes, steps = instruction.shape[1], -(-k // instruction.shape[2])
    registers_of_n = -(-n // lanes)
    best: tuple[float, int, int] | None = None
    for rows in range(1, min(m, isa.register_count) + 1):
        for registers in range(1, min(registers_of_n, isa.register_count) + 1):
            if rows * registers + min(rows, registers) + 1 > isa.register_count:
                break
            cycles = 0.0
            for r, r_count in panels(m, rows):
                for c, c_count in panels(registers_of_n, registers):
                    cycles += r_count * c_count * block_cycles(core, instruction, r, c, steps)
            if best is None or cycles < best[0]:
                best = cycles, rows, registers
    if best is None:
        raise ValueError("a block needs at least one row and one column")
    _, rows, registers = best
    return RegisterBlock(rows, registers * lanes, hold_lhs=rows < registers)


def panels(size: int, step: int) -> list[tuple[int, int]]:
    """(extent, how many) of the panels that cover `size`."""
    whole, rest = divmod(size, step)
    return [(step, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)
