"""Work on the rows of grouped products before they are multiplied: done while rows are packed, gathered or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import GroupedRunner, assert_grouped, fused_kernel, run_fused
from jax import lax
from oracle import kernels, normal, wide

import jax_nano
from jax_nano.machine import host
from jax_nano.schedule.grouped.choose import grouped_plans

TOKENS, ROWS, K, N = 23, 95, 70, 45
FILLED = {
    "few": [3, 0, 17, 1], "many": [0, 70, 25, 0], "too_few": [4, 20, 0, 6], "none": [0, 0, 0, 0], "one": [0, 0, 95, 0],
    "single_rows": [1, 1, 1, 1],
}  # fmt: skip
each_filling = pytest.mark.parametrize("sizes", FILLED.values(), ids=FILLED)
ROW_BY_ROW = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

PROLOGUES = {
    "scale_of_rows": lambda x, scale, gain, other: x * scale[:, None],
    "normalization": lambda x, scale, gain, other: x * scale[:, None] * gain,
    "activation": lambda x, scale, gain, other: jax.nn.silu(x),
    "gate": lambda x, scale, gain, other: jax.nn.silu(x) * other,
    "number": lambda x, scale, gain, other: x * 3 - 1,
}
each_prologue = pytest.mark.parametrize("work", PROLOGUES.values(), ids=PROLOGUES)


def operands(sizes=(20, 0, 33, 2), dtype=jnp.float32, stored=ROWS, rows=ROWS, k=K, n=N):
    """Stored rows, matrices, sizes, places of rows, and what stands beside rows."""
    x, w, other = (jnp.asarray(normal(*s, seed=i), dtype) for i, s in enumerate(((stored, k), (4, k, n), (rows, k))))
    scale, gain = jnp.asarray(normal(rows, seed=3), dtype), jnp.asarray(normal(k, seed=4), dtype)
    places = jnp.asarray(np.random.default_rng(5).integers(0, stored, (rows, 1)), jnp.int32)
    return x, w, jnp.asarray(sizes, jnp.int32), places, scale, gain, other


def in_order(work):
    return lambda x, w, sizes, places, *beside: lax.ragged_dot(work(x, *beside), w, sizes)


def gathered(work):
    """The work on the tokens at places."""

    def f(x, w, sizes, places, *beside):
        rows = lax.gather(x, places, ROW_BY_ROW, (1, x.shape[1]), mode=lax.GatherScatterMode.CLIP)
        return lax.ragged_dot(work(rows, *beside), w, sizes)

    return f


def in_kernel(f, *arguments):
    """What the kernel gives in guarded memory, with the prologue in it."""
    problem, _ = fused_kernel(f, *arguments)
    assert problem.dot.prologue
    return run_fused(f, *arguments).reshape(len(arguments[3]), -1)


@each_filling
@pytest.mark.parametrize("way", [in_order, gathered])
def test_rows_are_worked_on_in_the_kernel(way, sizes):
    x, w, sizes, places, *beside = operands(sizes, stored=ROWS if way is in_order else TOKENS)
    work = PROLOGUES["gate"] if way is in_order else PROLOGUES["normalization"]
    result = in_kernel(way(work), x, w, sizes, places, *beside)
    rows = x if way is in_order else x[places[:, 0]]
    assert_grouped(result, work(rows, *beside), w, sizes)


@each_prologue
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_all_work(dtype, work):
    arguments = operands(dtype=dtype, stored=TOKENS)
    result = in_kernel(gathered(work), *arguments)
    expected = np.asarray(gathered(work)(*map(wide, arguments[:2]), *arguments[2:4], *map(wide, arguments[4:])))
    np.testing.assert_allclose(wide(result), expected, rtol=2e-2, atol=1e-4 if dtype == jnp.float32 else 0.3)


@pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_every_plan_of_every_target(isa, dtype):
    x, w, sizes, places, *beside = operands((20, 1, 60, 5), dtype, TOKENS)
    work = PROLOGUES["scale_of_rows"]
    problem, arrays = fused_kernel(gathered(work), x, w, sizes, places, *beside)
    machine = host.machine()
    rows = jnp.asarray(wide(x)[np.asarray(places[:, 0])] * wide(beside[0])[:, None], dtype)
    expected = lax.ragged_dot(rows.astype(jnp.float32), w.astype(jnp.float32), sizes)
    for plan in grouped_plans(problem, machine, machine.isa(isa)):
        result = GroupedRunner(plan)(*arrays, before=True).reshape(ROWS, N)
        np.testing.assert_allclose(wide(result), expected, rtol=2e-2, atol=0.3)


@pytest.mark.parametrize(("rows", "k", "n"), [(1, 8, 16), (5, 1, 3), (64, 5, 2), (40, 33, 17)])
def test_edges(rows, k, n):
    x, w, _, places, *beside = operands((), stored=rows, rows=rows, k=k, n=n)
    sizes = jnp.array([0, rows // 2, rows, 0], jnp.int32)
    fast = jax_nano.accelerate(in_order(PROLOGUES["normalization"]))
    expected = in_order(PROLOGUES["normalization"])(x, w, sizes, places, *beside)
    np.testing.assert_allclose(fast(x, w, sizes, places, *beside), expected, rtol=1e-4, atol=1e-4)


def test_a_conversion_that_rounds():
    x, w, sizes, *_ = operands()
    f = lambda x, w, g: lax.ragged_dot(x.astype(jnp.bfloat16), w, g)  # noqa: E731
    arguments = x, w.astype(jnp.bfloat16), sizes
    problem, _ = fused_kernel(f, *arguments)
    assert (problem.dot.lhs, problem.dot.prologue.made) == ("f32", "bf16")
    assert_grouped(jax_nano.accelerate(f)(*arguments), x.astype(jnp.bfloat16), *arguments[1:])


@pytest.mark.parametrize(
    "weight", [jax_nano.pack, jax_nano.quantize, lambda w: jax_nano.quantize(w, bits=4)], ids=["p", "8", "4"]
)
def test_packed_and_quantized_experts(weight):
    x, w, sizes, places, *beside = operands(stored=TOKENS)
    small = weight(w)
    f = lambda x, w, *others: gathered(PROLOGUES["normalization"])(x, jnp.asarray(w), *others)  # noqa: E731
    result = in_kernel(f, x, small, sizes, places, *beside)
    np.testing.assert_allclose(result, f(x, small.__jax_array__(), sizes, places, *beside), rtol=2e-2, atol=1e-3)


def test_one_kernel_with_the_work_on_both_sides():
    x, w, sizes, places, *beside = operands()
    bias = jnp.asarray(normal(4, N))

    def layer(x, w, sizes, places, bias, *beside):
        y = in_order(PROLOGUES["normalization"])(x, w, sizes, places, *beside)
        return jax.nn.silu(y + jax_nano.repeat_by_group(bias, sizes, ROWS))

    arguments = x, w, sizes, places, bias, *beside
    with kernels(1):
        actual = jax.block_until_ready(jax.jit(jax_nano.accelerate(layer))(*arguments))
    np.testing.assert_allclose(actual, layer(*arguments), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_program():
    x, w, sizes, places, *beside = operands()
    f = gathered(PROLOGUES["normalization"])
    loss = lambda x, w, scale, gain: jnp.sum(jnp.sin(f(x, w, sizes, places, scale, gain, 0)))  # noqa: E731
    arguments = x, w, *beside[:2]
    expected = jax.grad(loss, range(4))(*arguments)
    actual = jax.jit(jax.grad(jax_nano.accelerate(loss), range(4)))(*arguments)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def report_of(f, *arguments):
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *arguments)
    return report


def test_inspect_says_what_is_done_to_rows():
    arguments = operands(stored=TOKENS)
    report = report_of(gathered(PROLOGUES["normalization"]), *arguments)
    assert report.ran_as == "kernel"
    assert report.fused[0] == "gather of rows"
    assert "mul" in report.fused
    assert "rows of A gathered out of 23" in str(report)


KEPT = {
    "once_a_token": lambda x, w, sizes, places, scale, gain, _: lax.ragged_dot((x * gain)[places[:, 0]], w, sizes),
    "columns": lambda x, w, sizes, places, *_: lax.ragged_dot((x.reshape(K, ROWS) * 2).T, w, sizes),
    "used_elsewhere": lambda x, w, sizes, places, *_: (lambda a: lax.ragged_dot(a, w, sizes) + a.sum())(x * 2),
    "many_columns": lambda x, w, sizes, places, *_: lax.ragged_dot(x * 2, jnp.tile(w, 30), sizes),
    "two_gathers": lambda x, w, sizes, places, *_: lax.ragged_dot(x[places[:, 0]] + x[places[::-1, 0]], w, sizes),
}  # fmt: skip


@pytest.mark.parametrize("f", KEPT.values(), ids=KEPT)
def test_other_work_stays_in_the_program(f):
    arguments = operands()
    report = report_of(f, *arguments)
    assert report.ran_as == "kernel"
    assert not report.problem.dot.prologue
    np.testing.assert_allclose(jax_nano.accelerate(f)(*arguments), f(*arguments), rtol=1e-4, atol=1e-3)
