"""What XLA partitions: kernels of shards on every device, by the collectives of plain jit."""

import itertools
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from collectives import collectives, compare
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import assert_close, kernels, normal

import jax_nano
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.jaxpr import private
from jax_nano.lowering.device_mesh import orders, prime_factors
from jax_nano.lowering.sharding import ShardingRule, assign, fitting
from jax_nano.machine import host

DEVICES = 4
A, B = normal(64, 32), normal(32, 48, seed=1)
SPECS = {"whole": P(), "rows": P("x"), "columns": P(None, "x")}
BOTH = {
    "data and tensor parallel": (P("x"), P(None, "y"), None),
    "tensor parallel, summed": (P("x", "y"), P("y"), None),
    "fully sharded weight": (P(("x", "y")), P(("x", "y")), None),
    "sharded weight, tensor parallel": (P("x"), P("x", "y"), None),
    "sum over both axes": (P(None, ("x", "y")), P(("x", "y")), None),
    "sum, and a sharded result": (P("x", "y"), P("y"), P("x", "y")),
    "columns over both axes": (P(), P(None, ("x", "y")), None),
    "rows over both axes, result replicated": (P(("x", "y")), P(), P()),
    "one axis unused": (P("x"), P(), P("x")),
}  # fmt: skip


def mesh(shape=(DEVICES,), names=("x",), kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def placed(mesh, specs, *arrays):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


# Products


@pytest.mark.parametrize("out", [None, *SPECS])
@pytest.mark.parametrize(("lhs", "rhs"), [*itertools.product(SPECS, SPECS)], ids="-".join)
def test_every_sharding_over_one_axis(lhs, rhs, out):
    line = mesh()
    how = {} if out is None else {"out_shardings": NamedSharding(line, SPECS[out])}
    args = placed(line, (SPECS[lhs], SPECS[rhs]), A, B)
    assert_close(compare(jnp.matmul, jax_nano.matmul, args, kernels=DEVICES, **how), "ij,jk->ik", A, B)


@pytest.mark.parametrize("case", BOTH)
def test_shardings_over_two_axes(case):
    *operands, out = BOTH[case]
    grid = mesh((2, 2), ("x", "y"))
    how = {} if out is None else {"out_shardings": NamedSharding(grid, out)}
    compare(jnp.matmul, jax_nano.matmul, placed(grid, operands, A, B), kernels=DEVICES, **how)


def test_partial_sums_of_integers():
    args = placed(mesh(), (P(None, "x"), P("x")), *((8 * x).astype(np.int8) for x in (A, B)))
    compare(jnp.matmul, jax_nano.matmul, args, kernels=DEVICES)


def test_partial_sums_of_bf16_are_rounded_once():
    a, b = (x.astype(ml_dtypes.bfloat16) for x in (A, B))
    args = placed(mesh(), (P(None, "x"), P("x")), a, b)
    programs = [jax.jit(f).lower(*args).compile() for f in (jnp.matmul, jax_nano.matmul)]
    assert collectives(programs[1]) == collectives(programs[0])
    assert_close(programs[1](*args), "ij,jk->ik", a, b)


def test_partial_sums_are_added_in_the_type_of_accumulators():
    a, b = np.full((4, 4096), 1, np.float16), np.full((4096, 4), 2.0**-12, np.float16)
    b[1024:] *= 2.0**-4
    args = placed(mesh(), (P(None, "x"), P("x")), a, b)
    assert_close(jax_nano.matmul(*args), "ij,jk->ik", a, b)


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(), P(None, "x")), (P(None, "x"), P("x"))], ids=str)
def test_sizes_that_devices_do_not_divide(specs):
    line = mesh()

    def product(matmul):
        def f(a, b):
            a, b = (lax.with_sharding_constraint(x, NamedSharding(line, s)) for x, s in zip((a, b), specs, strict=True))
            return matmul(1 / a, jnp.exp(b))  # so that what lies beyond the arrays is not zero

        return f

    compare(product(jnp.matmul), product(jax_nano.matmul), (1 + A[:30, :31] ** 2, B[:31, :47]), kernels=DEVICES)


PROGRAMS = {
    "batch": lambda matmul: lambda x, w: matmul(x, jnp.swapaxes(x, 1, 2)),
    "weight": lambda matmul: matmul,
    "vmap": lambda matmul: jax.vmap(matmul, (0, None)),
    "grad": lambda matmul: jax.grad(lambda x, w: jnp.sin(matmul(x, w)).sum(), (0, 1)),
    "jvp": lambda matmul: lambda x, w: jax.jvp(matmul, (x, w), (2 * x, 3 * w)),
    "remat": lambda matmul: jax.grad(lambda x, w: jax.checkpoint(lambda x, w: jnp.sin(matmul(x, w)))(x, w).sum()),
    "transposed weight": lambda matmul: lambda x, w: matmul(w.T, jnp.swapaxes(x, 1, 2)),
    "nested jit": jax.jit,
}
COUNT = {"grad": 3, "jvp": 3, "remat": 2}


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(None, None, "x"), P("x")), (P("x"), P("x"))], ids=str)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(program, specs):
    x, w = normal(8, 16, 32), normal(32, 24, seed=1)
    f = PROGRAMS[program]
    args = placed(mesh(), specs, x, w)
    compare(f(jnp.matmul), f(jax_nano.matmul), args, kernels=DEVICES * COUNT.get(program, 1))


def test_a_loop_and_a_condition():
    def f(matmul):
        def step(x, _):
            return lax.cond(
                x[0, 0] > 0, lambda x: jnp.tanh(matmul(x, SQUARE)), lambda x: matmul(x, SQUARE) * 0.5, x
            ), None

        return lambda x: lax.scan(step, x, None, length=3)[0]

    SQUARE = normal(256, 256, seed=3)
    args = placed(mesh(), (P("x"),), normal(64, 256))
    compare(f(jnp.matmul), f(jax_nano.matmul), args, kernels=3 * DEVICES)


def test_what_is_installed():
    args = placed(mesh(), (P("x"), P()), A, B)
    with jax_nano.installed(), kernels(DEVICES):
        assert_close(jnp.matmul(*args), "ij,jk->ik", A, B)


def test_a_mesh_whose_devices_are_in_another_order():
    devices = np.array(jax.devices())[[2, 0, 3, 1]].reshape(2, 2)
    grid = jax.sharding.Mesh(devices, ("x", "y"))
    compare(jnp.matmul, jax_nano.matmul, placed(grid, (P("x", "y"), P("y")), A, B), kernels=DEVICES)


MESHES = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp, numpy as np
from collectives import compare
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax_nano
a, b = np.ones((48, 24), np.float32), np.ones((24, 96), np.float32)
for shape in ((2, 4), (4, 2), (3, 2), (2, 3), (8, 1), (5, 1)):
    devices = shape[0] * shape[1]
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(shape), ("x", "y"))
    for specs in ((P(None, "y"), P("y")), (P(None), P(None, "y"))) if shape[0] == 5 else (
        (P("x"), P(None, "y")), (P("x", "y"), P("y")), (P(None, "y"), P("y", "x")), (P(("x", "y")), P()),
    ):
        args = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip((a, b), specs)]
        compare(jnp.matmul, jax_nano.matmul, args, kernels=devices)
"""


def test_meshes_of_eight_devices_and_of_numbers_that_are_no_powers_of_two():
    support = pathlib.Path(__file__).parents[1] / "support"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(support), *sys.path])}
    done = subprocess.run([sys.executable, "-c", MESHES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mesh_of_some_devices():
    some = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("x",))
    compare(jnp.matmul, jax_nano.matmul, placed(some, (P("x"), P()), A[:63], B), kernels=3)


@pytest.mark.parametrize(
    "specs", [(P("x", "y"), P("y", None), P("x", None)), (P("x", None), P(None, "y"), P("x", "y"))]
)
def test_explicit_axes(specs):
    *operands, out = specs
    with jax.set_mesh(mesh((2, 2), ("x", "y"), AxisType.Explicit)):
        a, b = (jax.device_put(x, spec) for x, spec in zip((A, B), operands, strict=True))

        def f(matmul):
            return lambda a, b: matmul(a, b, out_sharding=out)

        result = compare(f(jnp.matmul), f(jax_nano.matmul), (a, b), kernels=DEVICES)
        assert jax.typeof(result).sharding.spec == out


def test_the_threads_of_a_program_are_those_of_its_shards():
    args = placed(mesh(), (P("x"), P()), A, B)
    with jax_nano.threads(1):
        text = jax.jit(jax_nano.matmul).lower(*args).compile().as_text() or ""
    assert "threads = 1 : i64" in text or "threads = 1" in text


# What has kernels of its own


def convolution(f, **how):
    return lambda x, w: f(x, w, (1, 1), "SAME", **how)


@pytest.mark.parametrize("specs", [
    (P("x"), P()), (P(), P("x")), (P(None, "x"), P(None, "x")), (P("x"), P("x")), (P(), P()),
], ids=str)  # fmt: skip
def test_convolutions_over_batch_and_channels(specs):
    args = placed(mesh(), specs, normal(8, 16, 10, 10), normal(12, 16, 3, 3, seed=1))
    plain, ours = convolution(lax.conv_general_dilated), convolution(jax_nano.conv_general_dilated)
    compare(plain, ours, args, kernels=DEVICES)


def test_a_convolution_by_groups_over_the_batch_gathers_nothing():
    args = placed(mesh(), (P("x"), P()), normal(8, 16, 10, 10), normal(12, 4, 3, 3, seed=1))
    ours = convolution(jax_nano.conv_general_dilated, feature_group_count=4)
    plain = jax.jit(convolution(lax.conv_general_dilated, feature_group_count=4))
    program = jax.jit(ours).lower(*args).compile()
    assert not collectives(program)
    with kernels(DEVICES):
        np.testing.assert_allclose(program(*args), plain(*args), rtol=1e-4, atol=1e-4)


def attention(f, **how):
    return lambda q, k, v: f(q, k, v, **how)


@pytest.mark.parametrize("kv_heads", [8, 4])
@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"local_window_size": 3}], ids=str)
@pytest.mark.parametrize("spec", [P("x"), P(None, None, "x")], ids=str)
def test_attention_over_the_batch_and_heads(spec, how, kv_heads):
    q, k, v = normal(4, 16, 8, 8), normal(4, 16, kv_heads, 8, seed=1), normal(4, 16, kv_heads, 8, seed=2)
    args = placed(mesh(), (spec,) * 3, q, k, v)
    plain, ours = attention(jax.nn.dot_product_attention, **how), attention(jax_nano.dot_product_attention, **how)
    compare(plain, ours, args, kernels=DEVICES)


def test_attention_over_queries():
    q, k, v = (normal(4, 16, 8, 8, seed=seed) for seed in range(3))
    args = placed(mesh(), (P(None, "x"), P(), P()), q, k, v)
    plain, ours = attention(jax.nn.dot_product_attention), attention(jax_nano.dot_product_attention)
    compare(plain, ours, args, kernels=DEVICES)


def test_attention_with_fewer_heads_of_keys_than_devices():
    """Plain jit gathers other arrays; the result is right, and each device runs its kernel."""
    q, k, v = normal(4, 16, 8, 8), normal(4, 16, 2, 8, seed=1), normal(4, 16, 2, 8, seed=2)
    args = placed(mesh(), (P(None, None, "x"), P(), P()), q, k, v)
    with kernels(DEVICES):
        result = jax.jit(attention(jax_nano.dot_product_attention))(*args)
    np.testing.assert_allclose(result, jax.nn.dot_product_attention(q, k, v), rtol=1e-4, atol=1e-4)


def test_attention_with_a_bias_a_mask_and_lengths():
    q, k, v = (normal(4, 16, 8, 8, seed=seed) for seed in range(3))
    how = {"bias": normal(1, 8, 16, 16, seed=4), "mask": normal(4, 1, 1, 16, seed=5) > -1}
    how["key_value_seq_lengths"] = np.array([3, 16, 7, 9], np.int32)
    args = placed(mesh(), (P("x"),) * 3, q, k, v)
    plain, ours = attention(jax.nn.dot_product_attention, **how), attention(jax_nano.dot_product_attention, **how)
    compare(plain, ours, args, kernels=DEVICES)


@pytest.mark.parametrize("name", ["a score function", "a score function and a block mask"])
def test_attention_with_a_score_function_is_left_to_xla(name):
    how: dict[str, Any] = {"score": lambda s, *_: 5 * jnp.tanh(s / 5)}
    if "mask" in name:
        how["block_mask"] = jax_nano.block_mask(lambda b, h, i, j: j < 9, (1, 1, 16, 16))
    ours = attention(jax_nano.dot_product_attention, **how)
    alone = [normal(4, 16, 8, 8, seed=seed) for seed in range(3)]
    args = placed(mesh(), (P("x"),) * 3, *alone)
    report, *_ = jax_nano.inspect(ours, *args)
    assert report.reason == f"attention with {name} is not sharded; call it in jax.shard_map"
    np.testing.assert_allclose(jax.jit(ours)(*args), ours(*alone), rtol=1e-4, atol=1e-5)


def test_attention_to_a_quantized_cache_is_left_to_xla():
    q, k, v = (normal(4, 16, 8, 8, seed=seed) for seed in range(3))
    caches = [jax_nano.quantize_cache(x) for x in (k, v)]
    ours = attention(jax_nano.dot_product_attention)
    args = jax.device_put((q, *caches), NamedSharding(mesh(), P("x")))
    report, *_ = jax_nano.inspect(ours, *args)
    assert report.reason == "attention with a quantized cache is not sharded; call it in jax.shard_map"
    np.testing.assert_allclose(jax.jit(ours)(*args), ours(q, *caches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [P("x"), P(None, None, "x")], ids=str)
def test_a_gradient_of_attention(spec):
    def grad(f):
        return jax.grad(lambda q, k, v: f(q, k, v).sum(), (0, 1, 2))

    args = placed(mesh(), (spec,) * 3, *(normal(4, 16, 8, 8, seed=seed) for seed in range(3)))
    plain, ours = attention(jax.nn.dot_product_attention), attention(jax_nano.dot_product_attention)
    # The attention, three products by blocks for the gradient of queries, and four for those of keys and values.
    compare(grad(plain), grad(ours), args, kernels=8 * DEVICES)


# Reports


def test_reports_are_of_shards():
    (report,) = jax_nano.inspect(jax_nano.matmul, *placed(mesh(), (P("x"), P()), A, B))
    assert (report.ran_as, report.devices) == ("kernel", DEVICES)
    assert report.problem.sizes == (1, 16, 48, 32)
    assert "\n  on       each of 4 devices\n" in str(report)


# Rules

PRODUCT = ShardingRule(operands=(("m", "k"), ("k", "n")), results=(("m", "n"),), sums=("k",))


@pytest.mark.parametrize(("operands", "result", "expected"), [
    ((P("x"), P()), P("x"), {"m": ("x",)}),
    ((P(None, "x"), P("x")), P("x"), {"k": ("x",)}),
    ((P(None, "x"), P()), P(), {}),
    ((P("x"), P(None, "x")), P(None, "x"), {"n": ("x",)}),
    ((P("x"), P(None, "x")), P(), {"m": ("x",)}),
    ((P("x", "y"), P("y")), P("x"), {"m": ("x",), "k": ("y",)}),
    ((P(("y", "x")), P()), P(("y", "x")), {"m": ("y", "x")}),
])  # fmt: skip
def test_which_factor_takes_an_axis(operands, result, expected):
    assert assign(PRODUCT, operands, [result]) == expected


def test_only_axes_that_divide_are_taken():
    sizes = {"x": 2, "y": 3}
    assert fitting(("x", "y"), sizes, [12, 6]) == ("x", "y")
    assert fitting(("x", "y"), sizes, [12, 4]) == ("x",)
    assert fitting(("y", "x"), sizes, [12, 4]) == ()


def test_meshes_of_any_shape_are_products_of_primes():
    assert prime_factors(1) == []
    assert prime_factors(12) == [2, 2, 3]
    assert list(orders([2, 2, 3])) == [(2, 2, 3), (2, 3, 2), (3, 2, 2)]


@pytest.mark.parametrize("problem", ["turned off", "no target", "no Shardy"])
def test_where_there_are_no_kernels_products_are_xlas(monkeypatch, problem):
    args = placed(mesh(), (P("x"), P()), A, B)
    if problem == "turned off":
        monkeypatch.setenv("JAX_NANO", "0")
    elif problem == "no target":
        monkeypatch.setattr(host, "machine", lambda: (_ for _ in ()).throw(UnsupportedDot("no target")))
    else:
        monkeypatch.setattr(private, "is_shardy_used", lambda: False)
    jax.clear_caches()
    for f in (jax_nano.matmul, jax_nano.accelerate(lambda a, b: jax.nn.relu(a @ b))):
        with kernels(0):
            result = jax.jit(lambda a, b, f=f: f(a, b))(*args)
        assert result.shape == (64, 48)
