"""shard_map over some axes of a mesh: XLA spreads what is inside over the others, as kernels of shards."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from collectives import compare
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import assert_close, kernels, normal

import jax_nano
from jax_nano.lowering.device_mesh import Spread

DEVICES = 4
A, B = normal(64, 32), normal(32, 48, seed=1)


def mesh_of(shape, names):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def square():
    return mesh_of((2, 2), ("x", "y"))


def over(axes, f, ins, out, mesh=None, *, check_vma=True):
    """A function over some axes of a mesh."""
    return jax.shard_map(
        f, mesh=mesh or square(), in_specs=ins, out_specs=out, axis_names=set(axes), check_vma=check_vma
    )  # fmt: skip


def placed(mesh, specs, *arrays):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


# Which axis is manual, the specs of the shard_map, and how arguments are sharded.
X_MANUAL = ("x", (P("x"), P()), P("x"))
Y_MANUAL = ("y", (P(), P(None, "y")), P(None, "y"))
CASES = {
    "columns automatic": (*X_MANUAL, (P("x"), P(None, "y"))),
    "rows automatic": (*X_MANUAL, (P(("x", "y")), P())),
    "sum automatic": (*X_MANUAL, (P("x", "y"), P("y"))),
    "only B's sum automatic": (*X_MANUAL, (P("x"), P("y"))),
    "only A's sum automatic": (*X_MANUAL, (P("x", "y"), P())),
    "rows and columns automatic": (*X_MANUAL, (P(("x", "y")), P(None, "y"))),
    "nothing sharded": (*X_MANUAL, (P(), P())),
    "the first axis automatic, rows": (*Y_MANUAL, (P("x"), P(None, "y"))),
    "the first axis automatic, columns": (*Y_MANUAL, (P(), P(None, ("y", "x")))),
    "the first axis automatic, sum": (*Y_MANUAL, (P(None, "x"), P("x", "y"))),
}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_products(case, check_vma):
    axes, ins, out, specs = CASES[case]
    plain, ours = (over(axes, f, ins, out, check_vma=check_vma) for f in (jnp.matmul, jax_nano.matmul))
    assert_close(compare(plain, ours, placed(square(), specs, A, B), kernels=DEVICES), "ij,jk->ik", A, B)


@pytest.mark.parametrize("specs", [(P("x", "y"), P("y")), (P("x"), P(None, "y"))], ids=str)
def test_a_sum_over_the_manual_axis(specs):
    def f(matmul):
        return over("x", lambda a, b: lax.psum(matmul(a, b), "x"), (P(None, "x"), P("x")), P())

    args = placed(square(), specs, A, B)
    compare(f(jnp.matmul), f(jax_nano.matmul), args, kernels=DEVICES)


@pytest.mark.parametrize("specs", [(P("x", "y"), P("y")), (P("x"), P(None, "y"))], ids=str)
def test_gradients(specs):
    def f(matmul):
        loss = over("x", lambda a, b: jnp.sin(matmul(a, b)), (P("x"), P()), P("x"))
        return jax.grad(lambda a, b: loss(a, b).sum(), (0, 1))

    compare(f(jnp.matmul), f(jax_nano.matmul), placed(square(), specs, A, B), kernels=3 * DEVICES)


def test_constraints_on_the_automatic_axis():
    def f(matmul):
        def inner(a, b):
            hidden = lax.with_sharding_constraint(jnp.tanh(matmul(a, b)), P(None, "y"))
            return matmul(hidden, b.T)

        return over("x", inner, (P("x"), P()), P("x"))

    with jax.set_mesh(square()):
        compare(f(jnp.matmul), f(jax_nano.matmul), placed(square(), (P("x"), P()), A, B), kernels=2 * DEVICES)


def test_a_loop():
    def f(matmul):
        def inner(a, b):
            return lax.fori_loop(0, 3, lambda _, a: jnp.tanh(matmul(matmul(a, b), b.T)), a)

        return over("x", inner, (P("x"), P()), P("x"))

    args = placed(square(), (P("x", "y"), P("y")), A, B)
    compare(f(jnp.matmul), f(jax_nano.matmul), args, kernels=6 * DEVICES)


def test_a_constant_in_a_condition():
    def f(matmul):
        def inner(a):
            return lax.cond(a[0, 0] > 0, lambda: matmul(a, B), lambda: matmul(2 * a, B))

        return over("x", inner, (P("x"),), P("x"))

    compare(f(jnp.matmul), f(jax_nano.matmul), placed(square(), (P("x", "y"),), A), kernels=DEVICES)


def test_accelerated_with_what_is_fused():
    def f(a, b):
        return over("x", lambda a, b: jax.nn.relu(a @ b + 1) * 2, (P("x"), P()), P("x"))(a, b)

    for specs in ((P("x"), P(None, "y")), (P("x", "y"), P("y"))):
        compare(f, jax_nano.accelerate(f), placed(square(), specs, A, B), kernels=DEVICES)


def test_convolutions_and_attention():
    def conv(f):
        return over("x", lambda x, w: f(x, w, (1, 1), "SAME"), (P("x"), P()), P("x"))

    args = placed(square(), (P("x", "y"), P(None, "y")), normal(4, 16, 10, 10), normal(12, 16, 3, 3, seed=1))
    compare(conv(lax.conv_general_dilated), conv(jax_nano.conv_general_dilated), args, kernels=DEVICES)

    def attention(f):
        return over("x", f, (P("x"),) * 3, P("x"))

    args = placed(square(), (P("x", None, "y"),) * 3, *(normal(4, 16, 8, 8, seed=seed) for seed in range(3)))
    compare(
        attention(jax.nn.dot_product_attention), attention(jax_nano.dot_product_attention), args, kernels=DEVICES
    )  # fmt: skip


@pytest.mark.parametrize("free", "xyz")
def test_an_axis_amid_others(free):
    cube = mesh_of((2, 2, 1) if free != "z" else (2, 1, 2), ("x", "y", "z"))
    named = set("xyz") - {free}
    manual = next(name for name in sorted(named) if cube.shape[name] > 1)
    plain, ours = (over(named, f, (P(manual), P()), P(manual), mesh=cube) for f in (jnp.matmul, jax_nano.matmul))
    args = placed(cube, (P(manual, free), P(free)), A, B)
    compare(plain, ours, args, kernels=DEVICES)


EIGHT = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp, numpy as np
from collectives import compare
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jax_nano

def check(shape, axes, inner, ins, out, specs, *arrays, same=True):
    names = ("x", "y", "z")[:len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    plain, ours = (
        jax.shard_map(inner(f), mesh=mesh, in_specs=ins, out_specs=out, axis_names=axes)
        for f in (lax.dot_general, jax_nano.dot_general)
    )
    args = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs)]
    if same:
        compare(plain, ours, args, kernels=8)
    np.testing.assert_allclose(jax.jit(ours)(*args), jax.jit(plain)(*args), rtol=1e-4, atol=1e-4)
    return jax_nano.inspect(ours, *args)

def product(dot):
    return lambda a, b: dot(a, b, (((1,), (0,)), ((), ())))

def split(dot):  # rows become two dimensions, of which the first is summed over: each has a part of the axis
    def inner(a, b):
        return dot(a.reshape(2, 4, 32), b.reshape(2, 32, 24), (((0, 2), (0, 1)), ((), ())))
    return inner

rng = np.random.default_rng(0)
a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 32), (32, 48)))
odd = a[:, :30], b[:30]
tall = rng.normal(size=(64, 24)).astype(np.float32)
rows = {"x"}, product, (P("x"), P()), P("x")
check((2, 4), *rows, (P("x"), P(None, "y")), a, b)
check((2, 4), *rows, (P(("x", "y")), P()), a, b)
check((2, 4), *rows, (P("x", "y"), P("y")), a, b)
check((4, 2), *rows, (P("x", "y"), P("y")), a, b)
check((4, 2), {"y"}, product, (P("y"), P()), P("y"), (P("y", "x"), P("x")), a, b)
check((2, 4), {"x"}, split, (P("x"), P()), P("x"), (P(("x", "y")), P()), a, tall, same=False)
check((2, 2, 2), {"x", "z"}, product, (P(("x", "z")), P()), P(("x", "z")), (P(("x", "z"), "y"), P("y")), a, b)
(report,) = check((2, 2, 2), *rows, (P("x", "y"), P("y", "z")), a, b, same=False)
print(report.reason)
"""


def test_eight_devices():
    support = pathlib.Path(__file__).parents[1] / "support"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(support), *sys.path])}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "XLA partitions this program over 4 devices, and they are 2 automatic axes beside manual ones; with one, every "
        "device runs a kernel\n"
    )


def test_reports_are_of_shards():
    f = over("x", jax_nano.matmul, (P("x"), P()), P("x"))
    (report,) = jax_nano.inspect(f, *placed(square(), (P("x"), P(None, "y")), A, B))
    assert (report.ran_as, report.devices) == ("kernel", DEVICES)
    assert report.problem.sizes == (1, 32, 24, 32)


def test_manual_axes_of_one_device_are_none():
    cube = mesh_of((1, 2, 2), ("x", "y", "z"))
    f = over("x", jax_nano.matmul, (P("x"), P()), P("x"), mesh=cube)
    with kernels(DEVICES):
        assert_close(jax.jit(f)(A, B), "ij,jk->ik", A, B)


# Which devices


@pytest.mark.parametrize(("sizes", "manual", "expected"), [
    ((2, 4), "x", Spread(4, 2, 1)),
    ((2, 4), "y", Spread(2, 1, 4)),
    ((2, 4), "", Spread(8)),
    ((2, 4), "xy", Spread(1)),
    ((2, 3, 5), "xz", Spread(3, 2, 5)),
    ((2, 3, 5), "x", Spread(15, 2, 1, 2)),
    ((2, 3, 5), "y", Spread(10, 1, 1, 2)),
    ((2, 1, 5), "x", Spread(5, 2, 1)),
    ((1, 3, 5), "x", Spread(15)),
])  # fmt: skip
def test_which_devices_a_call_is_spread_over(sizes, manual, expected):
    shape = dict(zip("xyz", sizes, strict=False))
    assert Spread.over_automatic_axes(shape, set(manual)) == expected


@pytest.mark.parametrize(("spread", "is_ordered"), [(Spread(4), True), (Spread(4, 2), False), (Spread(3, 2, 2), True)])
def test_whose_order_is_known(spread, is_ordered):
    assert spread.is_ordered == is_ordered


def test_the_mesh_of_all_devices():
    inner = jax.sharding.AbstractMesh((2, 2), ("axis0", "axis1"))
    assert Spread(4).whole(inner) == inner
    assert Spread(4, 3, 5).whole(inner).axis_sizes == (3, 2, 2, 5)
    assert Spread(4, 3, 5).devices == 60
