"""Sums that devices share: what they exchange, in which type, and what they keep in memory."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from collectives import collectives
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import assert_close, kernels, normal

import jax_nano

DEVICES = 4
A, B = normal(64, 32), normal(32, 48, seed=1)


def mesh(shape=(DEVICES,), names=("x",)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def placed(mesh, specs, *arrays):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


SCATTERED = {
    "rows": ((DEVICES,), (P(None, "x"), P("x")), P("x"), ("reduce-scatter", ("f32", 16 * 48))),
    "columns": ((DEVICES,), (P(None, "x"), P("x")), P(None, "x"), ("reduce-scatter", ("f32", 64 * 12))),
    "within rows": ((2, 2), (P("x", "y"), P("y")), P(("x", "y")), ("reduce-scatter", ("f32", 16 * 48))),
    "beside rows": ((2, 2), (P("x", "y"), P("y")), P("x", "y"), ("reduce-scatter", ("f32", 32 * 24))),
    "two axes": ((2, 2), (P(None, ("x", "y")), P(("x", "y"))), P(("y", "x")), ("reduce-scatter", ("f32", 16 * 48))),
    "one of two axes": ((2, 2), (P(None, ("x", "y")), P(("x", "y"))), P("x"), ("all-reduce", ("f32", 64 * 48))),
    "two dimensions": ((2, 2), (P(None, ("x", "y")), P(("x", "y"))), P("x", "y"), ("all-reduce", ("f32", 64 * 48))),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=lambda x: x.__name__)
@pytest.mark.parametrize("case", SCATTERED)
def test_sums_of_which_devices_keep_a_part(case, dtype):
    """In the type of accumulators, and by no collective that moves more than plain jit's all-reduce."""
    shape, specs, out, expected = SCATTERED[case]
    grid = mesh(shape, ("x", "y")[: len(shape)])
    args = placed(grid, specs, A.astype(dtype), B.astype(dtype))
    for f in (jax_nano.matmul, jax_nano.accelerate(jnp.matmul)):
        program = jax.jit(f, out_shardings=NamedSharding(grid, out)).lower(*args).compile()
        assert collectives(program) == {expected: 1}
        with kernels(DEVICES):
            assert_close(program(*args), "ij,jk->ik", A.astype(dtype), B.astype(dtype))


def test_what_follows_a_sum_follows_the_whole_of_it():
    line = mesh()
    args = placed(line, (P(None, "x"), P("x")), A, B)
    f = jax_nano.accelerate(lambda a, b: jax.nn.relu(a @ b))
    program = jax.jit(f, out_shardings=NamedSharding(line, P("x"))).lower(*args).compile()
    assert {kind for kind, *_ in collectives(program)} == {"all-reduce"}
    np.testing.assert_allclose(program(*args), np.maximum(A @ B, 0), rtol=1e-4, atol=1e-4)


def test_parts_that_do_not_divide_a_result_are_all_reduced():
    line = mesh()

    def f(a, b):
        return lax.with_sharding_constraint(jax_nano.matmul(a, b), NamedSharding(line, P("x")))

    args = placed(line, (P(None, "x"), P("x")), A[:62], B)
    program = jax.jit(f, out_shardings=NamedSharding(line, P())).lower(*args).compile()
    assert {kind for kind, *_ in collectives(program)} == {"all-reduce", "all-gather"}
    assert_close(program(*args), "ij,jk->ik", A[:62], B)


@pytest.mark.parametrize("out", [P(), P("x")], ids=str)
@pytest.mark.parametrize("program", [jnp.matmul, jax_nano.matmul, jax_nano.accelerate(jnp.matmul)])
def test_a_sum_over_devices_gathers_no_operand(program, out):
    m, n, k = 64, 48, 1 << 14
    line = mesh()
    args = [
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(line, spec))
        for shape, spec in (((m, k), P(None, "x")), ((k, n), P("x")))
    ]
    memory = jax.jit(program, out_shardings=NamedSharding(line, out)).lower(*args).compile().memory_analysis()
    assert memory
    assert memory.argument_size_in_bytes == 4 * (m + n) * k / DEVICES
    assert memory.temp_size_in_bytes < 3 * 4 * m * n  # less than a tenth of an operand's shard
