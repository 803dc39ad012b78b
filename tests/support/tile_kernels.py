"""Products by tiles: every plan there is for one, and its kernel on memory whose every neighbour is forbidden."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from amx.build import processor_flags
from amx.selection import runs_here
from kernel_runner import DTYPES, Runner, linked
from oracle import assert_dot_general

from jax_nano import _native
from jax_nano.codegen.module import build_module, phase_symbols
from jax_nano.ir.dot import Dot, Operand
from jax_nano.lowering.precision import with_precision
from jax_nano.machine import x86
from jax_nano.runtime.kernel import Kernel, processor_for
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.weight_panels import panels_for

MACHINE = next(machine for machine in x86.MACHINES if machine.name == "graniterapids")
AMX = MACHINE.isa("amx")
MATMUL = ((1,), (0,)), ((), ())
# (lhs, rhs, out) that one instruction multiplies as they are, by the instruction's name.
PRODUCTS = {i.name: (i.lhs, i.rhs, i.acc) for i in AMX.dots}

needs_tile_vectors = pytest.mark.skipif(
    not {"avx512f", "avx512bw", "avx512_bf16"} <= processor_flags(),
    reason="kernels by tiles pack and finish with AVX-512 and AVX512-BF16, which this processor has not",
)


def numbers(rng, shape, dtype):
    """Any integers, or normally distributed numbers."""
    dtype = np.dtype(DTYPES[dtype])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(dtype)


def tile_plans(lhs, rhs, dimension_numbers, types, *, packed=False, precision=None, overlap_packing=False):
    """Every plan by tiles that the schedule weighs, before it divides work into tasks.

    Args:
      lhs: the shape of A.
      rhs: the shape of B.
      dimension_numbers: as lax.dot_general has them.
      types: of A, B and C.
      packed: whether B lies in panels.
      precision: what lax.dot_general would be asked for.
      overlap_packing: whether panels of B are packed beside products.
    """
    a, b = Operand.row_major(lhs, types[0]), Operand.row_major(rhs, types[1])
    if packed:
        panels = panels_for(types[1], rhs[0], rhs[1], MACHINE, AMX)
        b = replace(b, strides=(1, panels.rows), panels=panels)
    dot = with_precision(precision, Dot.of(a, b, dimension_numbers, types[2]))
    plans = (plan for plan in kernel_plans(dot, MACHINE, AMX) if plan.instruction.tiles)
    return [plan for plan in plans if plan.overlap_packing == overlap_packing]


def tile_ways(*args, **options):
    """Of the plans by tiles, one for each way of the operands to the tiles: for tests that choose the blocks.

    Args: those of tile_plans.
    """
    return list({blocked(plan, 1, 1): plan for plan in reversed(tile_plans(*args, **options))}.values())


def blocked(plan, tall, wide, *, panels=None, depth=None):
    """The plan with accumulators of tall x wide tiles.

    Args:
      panels: how many panels of rows and of columns a task has; None: all.
      depth: steps of k in a block, roughly; None: all.
    """
    rows, cols, _ = plan.instruction.shape
    mr, nr = rows * tall, cols * wide
    m, n = (-(-axis.size // step) * step for axis, step in ((plan.m, mr), (plan.n, nr)))
    mt, nt = (mr * panels, nr * panels) if panels else (m, n)
    mc = mr if plan.lhs == "rows" and not plan.overlap_packing else mt
    one = replace(plan, mr=mr, nr=nr, lhs_stationary=tall < wide, mc=mc, mt=mt, nc=n, nt=nt, kc=plan.k.size)
    if depth is None:
        return one
    return replace(one, kc=min(plan.k.size, -(-depth // one.k_multiple) * one.k_multiple))


def kernel_of(plan):
    """The kernel of a plan, past the caches."""
    processor = processor_for(plan, MACHINE)
    code = _native.compile(build_module(plan), processor.cpu, processor.features, processor.tune)
    return Kernel.of(plan.dot.swapped() if plan.swapped else plan.dot, plan, processor, code)


def run_here(types):
    """Every plan by tiles of a product of these types can run on the machine at hand: tests of others are left out."""
    return all(runs_here(plan.instruction.name) for plan in tile_plans((16, 64), (64, 16), MATMUL, types))


class TileRunner(Runner):
    """Runs a plan for MACHINE."""

    def __init__(self, plan):
        assert runs_here(plan.instruction.name), f"{plan.instruction.name} would kill the process: leave it out"
        self.kernel, self.plan = kernel_of(plan), plan
        self.entries = linked(self.kernel.object, phase_symbols(plan))


def check(plans, dimension_numbers, types, lhs, rhs, **run):
    """Runs plans on an array each, against NumPy."""
    assert plans
    for plan in plans:
        out = TileRunner(plan)(lhs, rhs, **run)
        shape = jax.eval_shape(lambda a, b: jax.lax.dot_general(a, b, dimension_numbers), lhs, rhs).shape
        assert_dot_general(out.reshape(shape), lhs, rhs, dimension_numbers)
