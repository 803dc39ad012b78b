"""Regions that XLA partitions: fused kernels of shards, with weights as they are kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives, compare
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import kernels, normal

import jax_nano
from jax_nano.jaxpr.factors import NoFactors, factors_of

DEVICES = 4
X, W, ROW, C = normal(64, 32), normal(32, 128, seed=1), normal(128, seed=2), normal(64, 128, seed=3)


def placed(arrays, specs):
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), [*arrays], [*specs])


def gelu(x, w, row):
    return jax.nn.gelu(x @ w + row)


def gated(x, w, c):
    return (jax.nn.silu(x @ w) * c).astype(jnp.bfloat16)


def normalized(x, gamma, w):
    return (x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True)) * gamma) @ w


def batched(x, w, row):
    return jax.nn.relu(x @ w + row)


FUSED = {
    "rows": (gelu, (X, W, ROW), (P("x"), P(), P())),
    "columns": (gelu, (X, W, ROW), (P(), P(None, "x"), P("x"))),
    "a gathered weight": (gelu, (X, W, ROW), (P("x"), P("x"), P())),
    "an array beside": (gated, (X, W, C), (P("x"), P(), P("x"))),
    "an array beside, by columns": (gated, (X, W, C), (P(), P(None, "x"), P(None, "x"))),
    "a prologue": (normalized, (X, normal(32, seed=4), W), (P("x"), P(), P())),
    "a batch": (batched, (X.reshape(8, 8, 32), W, ROW), (P("x"), P(), P())),
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_a_region_is_one_kernel_on_every_device(case):
    f, arrays, specs = FUSED[case]
    args = placed(arrays, specs)
    compare(f, jax_nano.accelerate(f), args, kernels=DEVICES)
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *args)
    (alone,) = jax_nano.inspect(jax_nano.accelerate(f), *arrays)
    assert {*alone.fused} - {"reshape", "relu"} <= {*report.fused}
    assert report.devices == DEVICES


def test_work_on_a_sum_over_devices_follows_it():
    args = placed((X, W, ROW), (P(None, "x"), P("x"), P()))
    compare(gelu, jax_nano.accelerate(gelu), args, kernels=DEVICES)


def test_a_gradient():
    def grad(f):
        return jax.grad(lambda x, w, row: f(x, w, row).sum(), (0, 1, 2))

    args = placed((X, W, ROW), (P("x"), P(), P()))
    compare(grad(gelu), grad(jax_nano.accelerate(gelu)), args, kernels=3 * DEVICES)


def test_fused_matmul():
    def f(x, w, row):
        return jax_nano.fused_matmul(x, w, row, epilogue=lambda acc, row: jax.nn.relu(acc + row))

    args = placed((X, W, ROW), (P("x"), P(), P()))
    compare(lambda x, w, row: jax.nn.relu(x @ w + row), f, args, kernels=DEVICES)


WEIGHTS = {
    "packed": jax_nano.pack,
    "8 bits": jax_nano.quantize,
    "4 bits by groups": lambda w: jax_nano.quantize(w, bits=4, group=32),
    "asymmetric": lambda w: jax_nano.quantize(w, symmetric=False),
}
COLUMNS = {"packed": lambda _: P("x")}


@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_read_as_they_are_kept(kind, along):
    weight = WEIGHTS[kind](np.tile(W, (2, 1)))
    x = np.tile(X, (1, 2))
    specs = jax.tree.map(COLUMNS.get(kind, lambda x: P(None, "x")) if along == "columns" else lambda _: P(), weight)
    args = placed((x, weight), (P("x") if along == "rows" else P(), specs))
    expected = jax_nano.matmul(x, weight)
    program = jax.jit(jax_nano.matmul).lower(*args).compile()
    assert not collectives(program)
    with kernels(DEVICES):
        result = program(*args)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)
    assert result.sharding.shard_shape(result.shape) == ((16, 128) if along == "rows" else (64, 32))
    (report,) = jax_nano.inspect(jax_nano.matmul, *args)
    assert {"packed weight", "nano_dequantize"} & {*report.fused}


def test_a_quantized_weight_by_its_rows_is_summed_over_devices():
    weight: Any = jax_nano.quantize(W)
    specs = jax.tree.map(lambda x: P("x") if x.shape[0] > 1 else P(), weight)
    args = placed((X, weight), (P(None, "x"), specs))
    program = jax.jit(jax_nano.matmul).lower(*args).compile()
    assert collectives(program) == {("all-reduce", ("f32", 64 * 128)): 1}
    expected = jax_nano.matmul(X, weight)
    with kernels(DEVICES):
        np.testing.assert_allclose(program(*args), expected, rtol=1e-5, atol=1e-4)


def test_panels_that_columns_do_not_fill_are_unpacked():
    w = normal(32, 100, seed=5)
    args = placed((X, jax_nano.pack(w)), (P("x"), jax.tree.map(lambda _: P(), jax_nano.pack(w))))
    with kernels(DEVICES):
        np.testing.assert_allclose(jax_nano.matmul(*args), X @ w, rtol=1e-4, atol=1e-4)


def test_what_is_not_that_of_shards():
    jaxpr = jax.make_jaxpr(lambda x: jnp.cumsum(x, 0))(X).jaxpr
    with pytest.raises(NoFactors, match=r"jit|pjit|cumsum"):
        factors_of(jaxpr)
    args = placed((X[:32],), (P("x"),))
    square = jax_nano.accelerate(lambda x: jax.nn.relu(x @ x.T))
    with kernels(DEVICES):
        np.testing.assert_allclose(jax.jit(square)(*args), jax.nn.relu(X[:32] @ X[:32].T), rtol=1e-4, atol=1e-4)
