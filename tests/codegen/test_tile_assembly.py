"""What LLVM makes of kernels by tiles: read in the assembly, which needs no AMX."""

import re

import pytest
from jax.lax import DotAlgorithmPreset
from tile_kernels import AMX, MACHINE, MATMUL, PRODUCTS, blocked, tile_ways

from jax_nano.runtime.kernel import Kernel, processor_for

BLOCKS = [(t, w) for t in range(1, 8) for w in range(1, 8) if t * w + min(t, w) + 1 <= AMX.register_count]
ADDRESSES = {"addq", "leaq", "cmpq", "jb", "jne", "jl", "movq", "subq", "incq", "decq"}


def assembly(plan):
    return Kernel.of(plan.dot, plan, processor_for(plan, MACHINE), b"").assembly


def loops(text, mnemonic):
    """The instructions of each innermost loop that contains one of that name."""
    found = []
    for label, body in re.findall(r"^(\.LBB\S+):(.*?)(?=^\.LBB|^\.Lfunc_end)", text, re.M | re.S):
        instructions = re.findall(r"^\t([a-z]\w*)", body.split(f"\t{label}\n")[0], re.M)
        if re.search(rf"^\tj\w+\t{re.escape(label)}$", body, re.M) and mnemonic in instructions:
            found.append(instructions)
    return found


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_main_loop_multiplies_four_times_for_four_loads(name):
    types = PRODUCTS[name]
    for plan in tile_ways((512, 1024), (1024, 512), MATMUL, types):
        (loop,) = loops(assembly(blocked(plan, 2, 2)), name)
        assert loop.count(name) == 4
        assert loop.count("tileloadd") == 4
        assert set(loop) <= {name, "tileloadd", *ADDRESSES}
        assert len(loop) <= 8 + 8


@pytest.mark.parametrize(("types", "tall", "lines"), [
    (("bf16", "bf16", "f32"), 2, {"vmovdqu16": 32, "vpermt2w": 32, "vmovdqu64": 32}),
    (("f16", "f16", "f32"), 2, {"vmovdqu16": 32, "vpermt2w": 32, "vmovdqu64": 32}),
    (("s8", "s8", "s32"), 4, {"vmovdqu8": 64, "vinserti128": 32, "vpermt2d": 16, "vpshufb": 16, "vmovdqu64": 16}),
], ids=str)  # fmt: skip
def test_packing_stands_in_the_loop_of_the_first_rows(types, tall, lines):
    """Nothing is added to the others' loop, and to theirs a load or so, a few shuffles and a store for each line."""
    for plan in tile_ways((512, 512), (512, 512), MATMUL, types, overlap_packing=True):
        text = assembly(blocked(plan, tall, 4 // tall))
        assert "Folded Spill" not in "".join(line for line in text.splitlines() if "tile" in line)
        assert text.count("ldtilecfg") == text.count("tilerelease") == 1
        packing, alone = sorted(loops(text, plan.instruction.name), key=len, reverse=True)
        tiles = {plan.instruction.name, "tileloadd", *ADDRESSES}
        masks, moves = {"vpcmpgtd", "kunpckwd"}, {"prefetcht1", "vmovdqa64"}
        assert set(alone) <= {*tiles, "prefetcht1"}
        assert set(packing) <= {*tiles, *masks, *moves, *lines}
        assert sum(packing.count(name) for name in masks) <= 3
        for loop in (packing, alone):
            assert loop.count(plan.instruction.name) == 4
            assert loop.count("tileloadd") in (4, 5)
        assert {name: packing.count(name) for name in lines} == lines


@pytest.mark.parametrize("terms", [3, 6, 9])
def test_products_of_components_have_the_same_loops(terms):
    """One for small terms and one for the largest, without a tile spilled between them."""
    types, precision = ("f32", "f32", "f32"), DotAlgorithmPreset[f"BF16_BF16_F32_X{terms}"]
    for plan in tile_ways((512, 1024), (1024, 512), MATMUL, types, precision=precision):
        for depth in (None, 256):
            text = assembly(blocked(plan, 2, 2, depth=depth))
            assert "Folded Spill" not in "".join(line for line in text.splitlines() if "tile" in line)
            assert text.count("ldtilecfg") == text.count("tilerelease") == 1
            found = loops(text, "tdpbf16ps")
            assert len(found) == 2
            for loop in found:
                assert (loop.count("tdpbf16ps"), loop.count("tileloadd")) == (4, 4)
                assert set(loop) <= {"tdpbf16ps", "tileloadd", *ADDRESSES}


@pytest.mark.parametrize(("tall", "wide"), BLOCKS)
@pytest.mark.parametrize("size", [(7, 100, 50), (130, 150, 70), (256, 256, 4096)])
def test_no_block_spills_tiles_and_all_share_one_configuration(tall, wide, size):
    m, n, k = size
    for types in (("bf16", "bf16", "bf16"), ("s8", "u8", "s32")):
        for plan in tile_ways((m, k), (k, n), MATMUL, types):
            for depth in (None, 256):
                text = assembly(blocked(plan, tall, wide, depth=depth))
                assert "Folded Spill" not in "".join(line for line in text.splitlines() if "tile" in line)
                assert text.count("ldtilecfg") == text.count("tilerelease") == 1
                for loop in loops(text, plan.instruction.name):
                    products, loads = loop.count(plan.instruction.name), loop.count("tileloadd")
                    shapes = {(t * w, t + w) for t in range(1, tall + 1) for w in range(1, wide + 1)}
                    assert (products, loads) in shapes
