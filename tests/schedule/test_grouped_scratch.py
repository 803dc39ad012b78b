"""Scratch of grouped products: beside operands and result, 16 MiB for each thread at most."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from grouped import ROWS, SUMS, TRANSPOSED, fused_problem
from jax import lax

import jax_nano
from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.jaxpr.grouped.dimensions import grouped_of
from jax_nano.machine import x86
from jax_nano.schedule.grouped.choose import grouped_plans

MOST = 16 << 20
MACHINES = [x for x in x86.MACHINES if x.name in ("znver5", "sapphirerapids", "haswell")]
SHAPES = [  # groups, M, K, N
    (8, 4096, 4096, 14336), (128, 1024, 2048, 768), (64, 512, 2048, 1408), (32, 128, 2880, 2880), (2, 1, 65536, 7),
    (4, 64, 33, 47), (1, 20000, 131072, 64), (8, 4096, 16, 100000), (300, 300, 512, 512),
]  # fmt: skip
TYPES = [("f32", "f32"), ("bf16", "bf16"), ("f16", "f32"), ("s8", "s32"), ("f64", "f64")]
WEIGHTS = {
    "packed": jax_nano.pack,
    "8 bits": jax_nano.quantize,
    "4 bits in groups": lambda w: jax_nano.quantize(w, bits=4, group=64),
}


def assert_fits(problem, machine):
    machine = replace(machine, threads=2)
    for isa in machine.isas:
        try:
            plans = grouped_plans(problem, machine, isa)
        except UnsupportedDot:
            continue
        for plan in plans:
            assert plan.local_bytes + plan.shared_bytes / machine.threads <= MOST, (isa.name, plan)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_arrays_in_every_mode(shape, machine):
    groups, m, k, n = shape
    sizes = Operand.row_major((groups,), "s32")
    shapes = {ROWS: (groups, k, n), TRANSPOSED: (groups, n, k), SUMS: (m, n)}
    for (dtype, out), numbers in itertools.product(TYPES, shapes):
        lhs, rhs = Operand.row_major((m, k), dtype), Operand.row_major(shapes[numbers], dtype)
        result = Operand.row_major((groups, k, n) if numbers is SUMS else (m, n), out)
        assert_fits(grouped_of(numbers, lhs, rhs, sizes, result), machine)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_of_weights_of_gathered_rows_with_work_around_them(weight):
    def layer(x, w, rows, sizes, gain):
        y = lax.ragged_dot(x.at[rows].get(mode="clip") * gain, jnp.asarray(w), sizes)
        return jax.nn.silu(y)

    for groups, m, k, n in SHAPES[1:4]:
        arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((m // 4, k), (groups, k, n), (k,))]
        x, w, gain = arrays
        numbers = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((m,), (groups,))]
        problem = fused_problem(layer, x, jax.eval_shape(weight, w), *numbers, gain)
        for machine in MACHINES:
            assert_fits(problem, machine)
