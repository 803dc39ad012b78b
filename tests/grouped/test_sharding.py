"""Grouped products over devices: kernels of shards, by no more than plain jit exchanges.

JAX takes a grouped product apart into arrays with a dimension of groups, and how XLA shards those is not told by the
operands: so bytes are compared, rather than which collectives there are.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives, exchanged
from grouped import SUMS, assert_grouped
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import kernels, normal

import jax_nano
from jax_nano.jaxpr.grouped.dimensions import GroupedDimensions
from jax_nano.lowering.cheapest_sharding import cheapest
from jax_nano.lowering.grouped_partition import rule_of

DEVICES = 4
SIZES = np.array([9, 0, 3, 17, 8, 8, 12, 5], np.int32)  # two of 64 rows are of no group
X, W, Y = normal(64, 32), normal(8, 32, 48, seed=1), normal(64, 48, seed=2)
ROWS = {"whole": P(), "rows": P("x"), "sums": P(None, "x")}
GROUPS = {"whole": P(), "groups": P("x"), "sums": P(None, "x"), "columns": P(None, None, "x")}
RESULTS = {"any": None, "rows": P("x")}


def mesh(shape=(DEVICES,), names=("x",)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def placed(mesh, *pairs):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in pairs]


def check(plain, ours, args, *, count=1, jit: dict | None = None):
    """Compiles and runs both: so many kernels on each device, equal results, and no more is exchanged."""
    programs = [jax.jit(f, **(jit or {})).lower(*args).compile() for f in (plain, ours)]
    assert exchanged(programs[1], DEVICES) <= exchanged(programs[0], DEVICES)
    with kernels(count * DEVICES):
        result = programs[1](*args)
    for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(programs[0](*args)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x.astype(np.float32), y.astype(np.float32), rtol=2e-2, atol=1e-3)
    return result


def by_sums(f):
    return lambda a, b, sizes: f(a, b, sizes, SUMS)


def result_by(spec):
    """What jit is told of a result's sharding."""
    return {"out_shardings": NamedSharding(mesh(), spec)} if spec is not None else {}


# Over one axis


@pytest.mark.parametrize("out", RESULTS)
@pytest.mark.parametrize(("lhs", "rhs"), [*itertools.product(ROWS, GROUPS)])
def test_rows_by_groups(lhs, rhs, out):
    args = placed(mesh(), (X, ROWS[lhs]), (W, GROUPS[rhs]), (SIZES, P()))
    assert_grouped(check(lax.ragged_dot, jax_nano.ragged_dot, args, jit=result_by(RESULTS[out])), X, W, SIZES)


@pytest.mark.parametrize("out", [None, P("x"), P(None, "x"), P(None, None, "x")], ids=str)
@pytest.mark.parametrize(("lhs", "rhs"), [("rows", "rows"), ("rows", "sums"), ("whole", "rows"), ("sums", "whole")])
def test_sums_by_groups(lhs, rhs, out):
    args = placed(mesh(), (X, ROWS[lhs]), (Y, ROWS[rhs]), (SIZES, P()))
    result = check(by_sums(lax.ragged_dot_general), by_sums(jax_nano.ragged_dot_general), args, jit=result_by(out))
    assert_grouped(result, X, Y, SIZES, SUMS)


@pytest.mark.parametrize("spec", [P("x"), P()], ids=str)
def test_a_sharded_result_takes_no_collective(spec):
    args = placed(mesh(), (X, spec), (W, P()), (SIZES, P()))
    assert not collectives(jax.jit(jax_nano.ragged_dot).lower(*args).compile())


def test_sharded_sizes_are_gathered():
    args = placed(mesh(), (X, P("x")), (W, P()), (SIZES, P("x")))
    assert_grouped(jax.jit(jax_nano.ragged_dot)(*args), X, W, SIZES)


# Sizes


@pytest.mark.parametrize(
    "sizes", [[64] + [0] * 7, [0] * 7 + [64], [0] * 8, [40] * 8, [1] * 8, [0, 31, 2, 0, 0, 31, 0, 0]]
)
@pytest.mark.parametrize("specs", [(P("x"), P()), (P(), P("x"))], ids=str)
def test_sizes(specs, sizes):
    """Groups that a border of shards divides, that go beyond the rows, and of which there are none."""
    sizes = np.array(sizes, np.int32)
    args = placed(mesh(), (X, specs[0]), (W, specs[1]), (sizes, P()))
    with kernels(DEVICES):
        assert_grouped(jax.jit(jax_nano.ragged_dot)(*args), X, W, sizes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_narrow_types_of_sizes_do_not_overflow(dtype):
    x, sizes = normal(400, 32), np.full(8, 50, dtype)
    for specs in ((P("x"), P()), (P(), P("x"))):
        args = placed(mesh(), (x, specs[0]), (W, specs[1]), (sizes, P()))
        assert_grouped(jax.jit(jax_nano.ragged_dot)(*args), x, W, sizes)


@pytest.mark.parametrize(
    "specs", [(P("x"), P()), (P(None, "x"), P(None, "x")), (P(), P("x")), (P(), P(None, None, "x"))]
)
def test_sizes_that_devices_do_not_divide(specs):
    line, sizes = mesh(), np.array([9, 0, 20, 17, 8, 8], np.int32)

    def f(x, w, sizes):
        x, w = (lax.with_sharding_constraint(a, NamedSharding(line, s)) for a, s in zip((x, w), specs, strict=True))
        return jax_nano.ragged_dot(1 / x, jnp.exp(w), sizes)  # so that what lies beyond the arrays is not zero

    x, w = 1 + normal(62, 30) ** 2, normal(6, 30, 46)
    with kernels(DEVICES):
        assert_grouped(jax.jit(f)(x, w, sizes), 1 / x, np.exp(w), sizes)


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(), P("x"))], ids=str)
def test_sizes_and_elements_of_64_bits(x64, specs):
    x, w, sizes = X.astype(np.float64), W.astype(np.float64), SIZES.astype(np.int64)
    args = placed(mesh(), (x, specs[0]), (w, specs[1]), (sizes, P()))
    with kernels(DEVICES):
        assert_grouped(jax.jit(jax_nano.ragged_dot)(*args), x, w, sizes)


# Programs


@pytest.mark.parametrize("specs", [(P(None, "x"), P(None, "x")), (P(), P("x"))], ids=["sums", "groups"])
def test_partial_sums(specs):
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in (X, W))
    program = jax.jit(jax_nano.ragged_dot).lower(*placed(mesh(), (x, specs[0]), (w, specs[1]), (SIZES, P()))).compile()
    assert collectives(program) == {("all-reduce", ("f32", 64 * 48)): 1}
    assert_grouped(program(x, w, SIZES), x, w, SIZES)
    x, w = ((4 * a).astype(np.int8) for a in (X, W))
    check(lax.ragged_dot, jax_nano.ragged_dot, placed(mesh(), (x, specs[0]), (w, specs[1]), (SIZES, P())))


def layer(ragged_dot):
    def f(x, up, down, sizes):
        return (jax.nn.relu(ragged_dot(x, up, sizes)), down)

    def loss(x, up, down, sizes):
        hidden, down = f(x, up, down, sizes)
        return jnp.sin(ragged_dot(hidden, down, sizes)).sum()

    return jax.grad(loss, (0, 1, 2))


@pytest.mark.parametrize("specs", [
    (P(), P("x"), P("x")), (P("x"), P(), P()), (P(), P(None, None, "x"), P(None, "x")),
], ids=["experts", "data", "tensor"])  # fmt: skip
def test_a_gradient_of_two_layers(specs):
    line = mesh()
    args = placed(line, (X, specs[0]), (W, specs[1]), (normal(8, 48, 32), specs[2]), (SIZES, P()))
    how = {"out_shardings": tuple(NamedSharding(line, spec) for spec in specs)}
    check(layer(lax.ragged_dot), layer(jax_nano.ragged_dot), args, count=6, jit=how)


@pytest.mark.parametrize(
    "specs", [(P("y"), P(None, None, "x")), (P("y"), P("x")), (P("y", "x"), P(None, "x"))], ids=str
)
def test_two_axes(specs):
    args = placed(mesh((2, 2), ("x", "y")), (X, specs[0]), (W, specs[1]), (SIZES, P()))
    assert_grouped(check(lax.ragged_dot, jax_nano.ragged_dot, args), X, W, SIZES)


def test_inside_of_shard_map_over_some_axes():
    grid = mesh((2, 2), ("x", "y"))

    def f(ragged_dot):
        def inner(x, w, sizes):
            return ragged_dot(x, w, sizes)

        specs = P("x"), P(), P()
        return jax.shard_map(inner, mesh=grid, in_specs=specs, out_specs=P("x"), axis_names={"x"})

    for spec in (P("y"), P(None, "y"), P(None, None, "y")):
        args = placed(grid, (np.concatenate([X, X]), P("x")), (W, spec), (SIZES, P()))
        check(f(lax.ragged_dot), f(jax_nano.ragged_dot), args)


def test_expert_parallelism_by_shard_map():
    """Each device has rows and experts: all rows come together, and go back summed."""

    def f(ragged_dot):
        def inner(x, w, sizes):
            x = lax.all_gather(x, "x", tiled=True)
            count = w.shape[0]
            ends = jnp.cumsum(sizes)
            first = lax.axis_index("x") * count
            begin = jnp.where(first > 0, ends[first - 1], 0)
            own = lax.dynamic_slice(sizes, (first,), (count,))
            y = jnp.roll(ragged_dot(jnp.roll(x, -begin, 0), w, own), begin, 0)
            return lax.psum_scatter(y, "x", tiled=True)

        specs = P("x"), P("x"), P()
        return jax.shard_map(inner, mesh=mesh(), in_specs=specs, out_specs=P("x"))

    args = placed(mesh(), (X, P("x")), (W, P("x")), (SIZES, P()))
    assert_grouped(check(f(lax.ragged_dot), f(jax_nano.ragged_dot), args), X, W, SIZES)


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P(None, None, "x")], ids=str)
def test_a_batch_with_sizes_of_its_own(spec):
    x, sizes = normal(4, 64, 32), np.stack([np.roll(SIZES, i) for i in range(4)])
    args = placed(mesh(), (x, spec), (W, P()), (sizes, P()))
    with kernels(DEVICES):
        results = jax.jit(jax.vmap(jax_nano.ragged_dot, (0, None, 0)))(*args)
    for result, rows, own in zip(results, x, sizes, strict=True):
        assert_grouped(result, rows, W, own)


def test_reports_are_of_shards():
    args = placed(mesh(), (X, P("x")), (W, P()), (SIZES, P()))
    (report,) = jax_nano.inspect(jax_nano.ragged_dot, *args)
    assert (report.ran_as, report.devices, report.problem.rows) == ("kernel", DEVICES, 16)


def test_what_has_no_kernel_says_so():
    args = placed(mesh(), (X.astype(np.complex64), P("x")), (W.astype(np.complex64), P()), (SIZES, P()))
    (report,) = jax_nano.inspect(jax_nano.ragged_dot, *args)
    assert report.reason.startswith("no kernel multiplies")
    np.testing.assert_allclose(
        jax.jit(jax_nano.ragged_dot)(*args), lax.ragged_dot(*args), rtol=1e-4, atol=1e-4
    )  # fmt: skip


# Rules


def dimensions(numbers, lhs, rhs):
    return GroupedDimensions.of(numbers, lhs, rhs)


def test_the_rules():
    ragged_dot = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
    rule = rule_of(dimensions(ragged_dot, 2, 3), 2, 3, 1)
    assert rule.operands == (("rows", "k0"), ("groups", "k0", "n2"), ("counts",))
    assert (rule.results, rule.sums) == ((("rows", "n2"),), ("groups", "k0"))
    rule = rule_of(dimensions(SUMS, 2, 2), 2, 2, 1)
    assert rule.operands == (("rows", "m1"), ("rows", "n1"), ("counts",))
    assert (rule.results, rule.sums) == ((("groups", "m1", "n1"),), ("rows",))


@pytest.mark.parametrize(("specs", "out", "expected"), [
    ((P("x"), P(), P()), P("x"), {"rows": ("x",)}),
    ((P(), P("x"), P()), P(), {"groups": ("x",)}),
    ((P("x"), P("x"), P()), P("x"), {"groups": ("x",)}),  # rather than gather large weights
    ((P("x"), P(None, None, "x"), P()), P(None, "x"), {"n2": ("x",)}),
    ((P("x"), P(None, None, "y"), P()), P("x", "y"), {"rows": ("x",), "n2": ("y",)}),
    ((P(("y", "x")), P(), P()), P(("y", "x")), {"rows": ("y", "x")}),
    ((P(), P(), P("x")), P(), {}),
])  # fmt: skip
def test_an_axis_goes_where_least_is_exchanged(specs, out, expected):
    ragged_dot = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
    rule = rule_of(dimensions(ragged_dot, 2, 3), 2, 3, 1)
    assert cheapest(rule, specs, [out], [8192, 49152, 32, 12288], {"x": 2, "y": 2}) == expected
