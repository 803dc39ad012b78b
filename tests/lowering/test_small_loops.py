"""Loops that XLA compiles into one function: what it does, by its HLO, and that small products are left to it there."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.extend.core import Primitive, jaxprs_in_params
from jax.extend.core.primitives import scan_p, while_p
from jax.interpreters import mlir
from oracle import assert_dot_general, normal

import jax_nano
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.ir.pipeline import UnsupportedPipeline
from jax_nano.lowering import loops, small_loops
from jax_nano.lowering.dot_general import nano as products
from jax_nano.lowering.loops import OTHERWISE
from jax_nano.lowering.small_loops import INLINE, check_inline, read_loop
from jax_nano.lowering.xla_inline import Product, byte_threshold, rules

CALL = 'xla_cpu_small_call="true"'
PRODUCTS = [*itertools.product((3, 4, 7, 8), repeat=3), *itertools.permutations((1, 8, 9))]


def compiled(f, *arrays):
    """The HLO of a function, without its being run."""
    return jax.jit(f).lower(*arrays).compile().as_text() or ""


def one_function(f, *arrays):
    """Whether XLA makes one function of the loop in it."""
    return CALL in compiled(f, *arrays)


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


# What XLA does


def loop_of(kind, out):
    """A loop of one product, whose operand A is the state, row-major ("n") or transposed ("t") as B is."""
    numbers = (((1 if kind[0] == "n" else 0,), (0 if kind[1] == "n" else 1,)), ((), ()))

    def loop(b, a):
        def step(a):
            return a + lax.dot_general(a, b, numbers, preferred_element_type=out).sum().astype(a.dtype)

        return lax.while_loop(lambda a: (a.ravel()[0] < 7).astype(bool), step, a)

    return loop


@pytest.mark.parametrize(
    "dtype, out, kind",
    [*(("float32", "float32", kind) for kind in ("nn", "nt", "tn", "tt")), ("float64", "float64", "nn"),
     ("bfloat16", "float32", "nn"), ("float16", "float16", "nn"), ("int8", "int32", "nn"), ("int8", "int32", "tn"),
     ("uint8", "int32", "nn"), ("int32", "int32", "nn"), ("int16", "int16", "nn")],
)  # fmt: skip
@pytest.mark.usefixtures("x64")
def test_xla_emits_inline_what_the_rules_say(dtype, out, kind):
    """Where this fails, the installed XLA has moved a threshold: find out where to, and give its version rules."""
    moved = []
    for m, n, k in PRODUCTS:
        a = spec(*((m, k) if kind[0] == "n" else (k, m)), dtype=dtype)
        b = spec(*((k, n) if kind[1] == "n" else (n, k)), dtype=dtype)
        types = dtype_name(dtype), dtype_name(dtype), dtype_name(out)
        expected = rules().inline(Product((1, m, n, k), types, contiguous_rows=kind[0] == "n"))
        if 8 * sum(x.size * max(4, x.dtype.itemsize) for x in (a, b, spec(m, n, dtype=out))) > byte_threshold():
            continue
        if one_function(loop_of(kind, out), b, a) != expected:
            moved.append((m, n, k))
    assert not moved, f"{rules()} does not hold for these (M, N, K)"


def matrix_by_vector(steps=5):
    """A loop of matrix-vector products."""

    def loop(w, x):
        return lax.scan(lambda x, _: (jnp.tanh(w @ x), None), x, None, length=steps)[0]

    return loop


def loop_step(f, *arrays):
    """The step of a function that is one loop."""
    (eqn,) = (eqn for eqn in jax.make_jaxpr(f)(*arrays).jaxpr.eqns if eqn.primitive in (scan_p, while_p))
    return [*jaxprs_in_params(eqn.params)]


def loop_bytes(f, *arrays):
    """What one step of a function that is one loop accesses, as it is read here."""
    return read_loop(*loop_step(f, *arrays)).bytes


def test_xla_counts_the_bytes_of_a_step():
    """Half the threshold is little enough, twice is too much."""
    for factor, expected in ((0.5, True), (2, False)):
        n = int((factor * byte_threshold() / 4) ** 0.5)
        arrays = spec(n, n), spec(n)
        assert loop_bytes(matrix_by_vector(), *arrays) == pytest.approx(factor * byte_threshold(), rel=0.4)
        assert one_function(matrix_by_vector(), *arrays) is expected


def test_a_custom_call_keeps_xla_from_making_one_function(monkeypatch):
    arrays = spec(3, 3), spec(3)
    monkeypatch.setattr(small_loops, "place_of", lambda *_: None)
    text = compiled(jax_nano.accelerate(matrix_by_vector()), *arrays)
    assert "custom-call" in text
    assert CALL not in text


# What jax_nano does


@pytest.fixture(autouse=True)
def no_loop_is_a_kernel(monkeypatch):
    """This is about what becomes of products in loops that are left to XLA."""

    def refuse(*_):
        raise UnsupportedPipeline("left to XLA")

    monkeypatch.setattr(loops, "check_is_faster", refuse)


@pytest.fixture(params=["accelerate", "install", "matmul"])
def nano(request):
    """What gives a function our products, in three ways."""
    if request.param == "accelerate":
        return jax_nano.accelerate

    def run_installed(f):
        def installed(*arrays):
            return f(*arrays)

        return installed

    if request.param == "matmul":
        return products
    request.getfixturevalue("installed")
    return run_installed


@pytest.fixture
def installed():
    with jax_nano.installed():
        yield


def reasons(f, *arrays):
    """Why products are no kernels."""
    return [report.reason for report in jax_nano.inspect(f, *arrays) if report.otherwise != OTHERWISE]


def test_a_small_product_in_a_loop_is_left_to_xla(nano):
    w, x = jnp.eye(3) / 2, jnp.ones(3)
    loop = nano(matrix_by_vector())
    text = compiled(loop, w, x)
    assert CALL in text
    assert "custom-call" not in text
    before = jax_nano.executed_kernels()
    np.testing.assert_array_equal(jax.jit(loop)(w, x), jax.jit(matrix_by_vector())(w, x))
    assert jax_nano.executed_kernels() == before


@pytest.mark.parametrize("out", ["float32", None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [(1, 60, 40), (40, 1, 60), (7, 7, 2)], ids=str)
def test_what_is_left_to_xla_is_as_exact(sizes, dtype, out):
    """XLA sums 16-bit floats in f32, too, and rounds once."""
    m, n, k = sizes
    a, b = normal(m, k, dtype=dtype), normal(k, n, seed=1, dtype=dtype)
    numbers = (((1,), (0,)), ((), ()))

    def loop(a, b):
        def step(_, c):
            return lax.dot_general(a + 0 * c[:1, :1].astype(a.dtype), b, numbers, preferred_element_type=out)

        return lax.fori_loop(0, (a[0, 0] < 100).astype(int), step, jnp.zeros((m, n), out or dtype))

    assert reasons(loop, a, b) == [INLINE]
    assert_dot_general(jax.jit(jax_nano.accelerate(loop))(a, b), a, b, numbers)


def test_reports_say_that_xla_does_it_inline():
    w, x = jnp.eye(3), jnp.ones(3)
    assert reasons(matrix_by_vector(), w, x) == [INLINE]


@pytest.mark.parametrize("m", [2, 8])
def test_a_product_that_xla_does_not_emit_inline_is_a_kernel(m):
    def loop(w, x):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=5)[0]

    assert reasons(loop, jnp.eye(16), jnp.ones((m, 16))) == [""]


def test_a_large_product_is_a_kernel_where_that_is_faster():
    """Of 16-bit floats, of which XLA reads twice as many bytes."""
    n = 2048
    w, x = jnp.zeros((n, n), jnp.bfloat16), jnp.zeros(n, jnp.bfloat16)
    assert reasons(matrix_by_vector(), w, x) == [""]


def test_what_vmap_makes_of_a_small_product_counts():
    def loop(w, x):
        return lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    w, x = jnp.eye(9), jnp.ones((9, 9))
    assert reasons(loop, w, x[0]) == [INLINE]
    assert reasons(jax.vmap(loop, (None, 0)), w, x) == [""]


def test_a_product_outside_of_loops_is_a_kernel():
    assert reasons(lambda w, x: w @ x, jnp.eye(3), jnp.ones(3)) == [""]


def test_small_products_are_left_to_xla_in_other_loops_too():
    """A product of matrices keeps the loop from being one function; the small one is XLA's own code all the same."""

    def loop(w, x):
        def step(x, _):
            return jnp.tanh(x @ w) * (w @ x[0]), None

        return lax.scan(step, x, None, length=5)[0]

    w, x = jnp.eye(16) / 2, jnp.ones((16, 16))
    assert sorted(reasons(loop, w, x)) == ["", INLINE]
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(loop))(w, x), loop(w, x), rtol=1e-5)


def test_loops_in_loops_are_left_to_xla_where_all_are():
    def nested(inner):
        def loop(w, x):
            def step(x, _):
                return w @ lax.fori_loop(0, 3, lambda _, x: jnp.tanh(inner(w, x)), x), None

            return lax.scan(step, x, None, length=5)[0]

        return loop

    w, x = jnp.eye(7), jnp.ones(7)
    assert set(reasons(nested(lambda w, x: w @ x), w, x)) == {INLINE}
    assert CALL in compiled(jax_nano.accelerate(nested(lambda w, x: w @ x)), w, x)
    w, x = jnp.eye(9), jnp.ones(9)
    text = compiled(jax_nano.accelerate(nested(lambda w, x: (w @ (w * x))[0])), w, x)
    assert "custom-call" in text
    assert CALL not in text


def test_an_inner_loop_is_left_to_xla_by_itself():
    """The outer one has a product of matrices."""

    def loop(w, x):
        def step(x, _):
            row = lax.fori_loop(0, 3, lambda _, x: jnp.tanh(w @ x), x[0])
            return jnp.tanh(x @ w) + row, None

        return lax.scan(step, x, None, length=5)[0]

    assert sorted(reasons(loop, jnp.eye(9), jnp.ones((9, 9)))) == ["", INLINE]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_function_that_is_called_in_a_loop_and_outside_is_lowered_twice(order):
    @jax.jit
    def product(w, x):
        return jnp.tanh(w @ x)

    def alone(w, x):
        return product(w, x)

    def loop(w, x):
        return lax.scan(lambda x, _: (product(w, x), None), x, None, length=5)[0]

    def both(w, x):
        for i in order:
            x = (alone, loop)[i](w, x)
        return x

    w, x = jnp.eye(3), jnp.ones(3)
    text = compiled(jax_nano.accelerate(both), w, x)
    assert CALL in text
    assert text.count("custom-call(") == 1


def test_a_while_loop_with_a_product_in_its_condition():
    def loop(w, x):
        return lax.while_loop(lambda x: (w @ x)[0] > 0.1, lambda x: 0.5 * (w @ x), x)

    w, x = jnp.eye(3), jnp.ones(3)
    assert reasons(loop, w, x) == [INLINE, INLINE]
    np.testing.assert_array_equal(jax.jit(jax_nano.accelerate(loop))(w, x), loop(w, x))


def test_gradients_of_a_loop_are_left_to_xla():
    def loss(w, x):
        return matrix_by_vector()(w, x).sum()

    w, x = jnp.eye(3) / 2, jnp.ones(3)
    gradient = jax.grad(loss, (0, 1))
    assert set(reasons(gradient, w, x)) == {INLINE}
    for got, want in zip(jax.jit(jax_nano.accelerate(gradient))(w, x), gradient(w, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_packed_weights_stay_packed_in_loops():
    w, x = jax_nano.pack(jnp.eye(16)), jnp.ones((1, 16))

    def loop(w, x):
        return lax.scan(lambda x, _: (jax_nano.matmul(x, w), None), x, None, length=5)[0]

    assert reasons(loop, w, x) == [""]


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_stay_so_in_loops(bits):
    w, x = jax_nano.quantize(jnp.eye(32), bits=bits), jnp.ones((1, 32))

    def loop(w, x):
        return lax.scan(lambda x, _: (jax_nano.matmul(x, w), None), x, None, length=5)[0]

    assert reasons(loop, w, x) == [""]


@pytest.mark.parametrize("preset", ["BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X9", "F16_F16_F32"])
def test_algorithms_are_followed_in_loops(preset):
    """XLA does not know some of them, and computes f32 for others."""
    algorithm = lax.DotAlgorithmPreset[preset]

    def loop(w, x):
        return lax.scan(lambda x, _: (jnp.matmul(w, x, precision=algorithm), None), x, None, length=2)[0]

    w, x = jnp.full((3, 3), 1 / 3), jnp.ones(3)
    assert reasons(loop, w, x) == [""]
    alone = jax_nano.matmul(w, jax_nano.matmul(w, x, precision=algorithm), precision=algorithm)
    np.testing.assert_array_equal(jax.jit(jax_nano.accelerate(loop))(w, x), alone)


def test_products_of_4_bits_are_kernels_in_loops():
    def loop(w, x):
        def step(x, _):
            return lax.dot_general(w, x, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32).astype(
                "int4"
            ), None

        return lax.scan(step, x, None, length=2)[0]

    w, x = jnp.eye(3, dtype="int4"), jnp.ones(3, "int4")
    assert reasons(loop, w, x) == [""]
    np.testing.assert_array_equal(jax.jit(jax_nano.accelerate(loop))(w, x), x)


def test_results_of_all_steps_count_by_the_step():
    """A scan writes each in place."""

    def loop(w, x):
        return lax.scan(lambda x, _: ((y := jnp.tanh(w @ x)), y), x, None, length=10_000)[1]

    w, x = jnp.eye(3), jnp.ones(3)
    assert one_function(loop, w, x)
    assert one_function(jax_nano.accelerate(loop), w, x)


def test_a_product_in_a_branch_does_not_count_for_kernels(monkeypatch):
    """It may be computed once in a thousand steps."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1000000000")

    def loop(w, x):
        def step(x, i):
            return lax.cond(i == 999, lambda x: w @ x, lambda x: x, x), None

        return lax.scan(step, x, jnp.arange(1000))[0]

    n = 512
    assert reasons(loop, jnp.zeros((n, n), jnp.bfloat16), jnp.zeros(n, jnp.bfloat16)) == [INLINE]


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_ordered_effects_in_loops(loop, nano):
    seen = []

    def step(w, x):
        io_callback(lambda x: seen.append(float(x)), None, x[0], ordered=True)
        return w @ x

    def f(w, x):
        if loop == "scan":
            return lax.scan(lambda x, _: (step(w, x), None), x, None, length=3)[0]
        return lax.while_loop(lambda x: x[0] > 0.2, lambda x: step(w, x), x)

    result = jax.jit(nano(f))(jnp.eye(3) / 2, jnp.ones(3))
    jax.effects_barrier()
    assert seen == [1, 0.5, 0.25]
    np.testing.assert_array_equal(result, np.full(3, 0.125))


def test_loops_can_be_exported_for_several_platforms():
    def loop(x):
        return lax.fori_loop(0, 3, lambda _, x: x + 1, x)

    exported = jax.export.export(jax.jit(loop), platforms=("cpu", "tpu"))(spec(3))
    np.testing.assert_array_equal(exported.call(jnp.ones(3)), np.full(3, 4))


def test_loops_run_where_there_is_no_target(monkeypatch):
    def machine(*_):
        raise UnsupportedDot("no target")

    monkeypatch.setattr(small_loops, "machine_for", machine)
    assert small_loops.place_of(*loop_step(jax_nano.accelerate(matrix_by_vector()), spec(3, 3), spec(3))) is None


def test_an_unknown_target_is_an_error_in_loops_too(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "nothing")
    with pytest.raises(ValueError, match="nothing"):
        jax.jit(jax_nano.accelerate(matrix_by_vector(7))).lower(jnp.eye(3), jnp.ones(3))


@pytest.mark.parametrize("threshold, kernels", [("0", True), ("-1", True), ("1000000", False)])
def test_users_may_set_xlas_threshold(monkeypatch, threshold, kernels):
    """With 0, XLA makes a function of no loop: then a large product by a vector is a kernel where that is faster."""
    monkeypatch.setenv("XLA_FLAGS", f"--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold={threshold}")
    assert byte_threshold() == int(threshold)
    place = small_loops.place_of(*loop_step(jax_nano.accelerate(matrix_by_vector()), spec(3, 3), spec(3)))
    assert place == ("operations" if kernels else "function")


def test_a_loop_that_fails_to_lower_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(small_loops, "place_of", lambda *_: "function")

    def failing(ctx, *operands, **params):
        with pytest.raises(UnsupportedDot):
            check_inline({}, ())
        raise RuntimeError("no lowering")

    def lower(ctx, *operands, **params):
        return small_loops._lowering(failing)(ctx, *operands, **params)

    primitive = Primitive("fails")
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, lower)
    with pytest.raises(RuntimeError, match="no lowering"):
        jax.jit(primitive.bind).lower(jnp.ones(3))
    check_inline({}, ())


def test_loops_without_products_are_lowered_as_before():
    def loop(x):
        return lax.fori_loop(0, 5, lambda _, x: jnp.sin(x), x)

    assert CALL in compiled(jax_nano.accelerate(loop), jnp.ones(3))
    assert jax_nano.inspect(loop, jnp.ones(3)) == ()


@pytest.mark.parametrize("dtype", ["complex64", "bool", "int16"])
def test_products_without_kernels_beside_others(dtype):
    """Types that kernels do not know."""

    def loop(w, x, z):
        def step(carry, _):
            x, z = carry
            return (w @ x, w.astype(dtype) @ z), None

        return lax.scan(step, (x, z), None, length=3)[0]

    arrays = jnp.eye(3), jnp.ones(3), jnp.ones(3, dtype)
    assert len(reasons(loop, *arrays)) == 2
    for got, want in zip(jax.jit(jax_nano.accelerate(loop))(*arrays), loop(*arrays), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_loop_may_carry_a_key():
    def loop(w, x, key):
        def step(carry, _):
            x, key = carry
            key, used = jax.random.split(key)
            return (w @ x + jax.random.normal(used, x.shape), key), None

        return lax.scan(step, (x, key), None, length=3)[0][0]

    arrays = jnp.eye(3), jnp.ones(3), jax.random.key(0)
    assert reasons(loop, *arrays) == [INLINE]
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(loop))(*arrays), loop(*arrays), rtol=1e-6)


def test_a_loop_of_symbolic_sizes_is_lowered_as_before():
    (n,) = jax.export.symbolic_shape("n")
    with jax_nano.installed():
        exported = jax.export.export(jax.jit(matrix_by_vector()))(spec(n, n), spec(n))
    np.testing.assert_array_equal(exported.call(jnp.eye(3), jnp.zeros(3)), jnp.zeros(3))
