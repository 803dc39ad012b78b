"""Every transformation of JAX, around products and inside of them, with closed forms in NumPy float64 as the oracle."""

import concurrent.futures
import functools
import importlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import assert_close, kernels, normal, primitives, run_python

import jax_nano

A, B, G = normal(6, 5), normal(5, 7, seed=1), normal(6, 7, seed=2)
S = normal(5, 5, seed=3)
MATRICES = (((1,), (0,)), ((), ()))


def f64(x):
    return np.asarray(x, np.float64)


def close(actual, exact):
    np.testing.assert_allclose(actual, exact, rtol=2e-5, atol=2e-5)


def test_jit():
    with kernels(1):
        assert_close(jax.jit(jax_nano.matmul)(A, B), "ij,jk->ik", A, B)


@pytest.mark.parametrize("in_axes", [(0, 0), (1, 0), (2, 2), (0, None), (None, 1), (-1, 1)])
@pytest.mark.parametrize("out_axes", [0, 1, -1])
def test_vmap_over_any_axis(in_axes, out_axes):
    a = A if in_axes[0] is None else np.stack([A, 2 * A, 3 * A], in_axes[0])
    b = B if in_axes[1] is None else np.stack([B, B, -B], in_axes[1])
    with kernels(1):
        result = jax.jit(jax.vmap(jax_nano.matmul, in_axes, out_axes))(a, b)
    a = np.broadcast_to(A, (3, *A.shape)) if in_axes[0] is None else np.moveaxis(a, in_axes[0], 0)
    b = np.broadcast_to(B, (3, *B.shape)) if in_axes[1] is None else np.moveaxis(b, in_axes[1], 0)
    assert_close(np.moveaxis(result, out_axes, 0), "bij,bjk->bik", a, b)


def test_nested_vmap():
    a, b = normal(2, 6, 5), normal(3, 4, 5, 7)
    pairs = jax.vmap(jax.vmap(jax.vmap(jax_nano.matmul, (None, 0)), (None, 0)), (0, None))
    with kernels(1):
        assert_close(pairs(a, b), "aij,bcjk->abcik", a, b)


def test_vmap_of_a_batched_product():
    a, b = normal(3, 2, 6, 5), normal(3, 5, 2, 7)
    with kernels(1):
        result = jax.vmap(lambda a, b: jax_nano.dot_general(a, b, (((2,), (0,)), ((0,), (1,)))))(a, b)
    assert_close(result, "abij,ajbk->abik", a, b)


def test_grad():
    def loss(a, b):
        return (jax_nano.matmul(a, b) * G).sum()

    with kernels(2):  # the product itself is not needed
        da, db = jax.jit(jax.grad(loss, (0, 1)))(A, B)
    close(da, f64(G) @ f64(B).T)
    close(db, f64(A).T @ f64(G))


def test_jvp():
    with kernels(3):
        primal, tangent = jax.jit(lambda *x: jax.jvp(jax_nano.matmul, x[:2], x[2:]))(A, B, 2 * A, 3 * B)
    assert_close(primal, "ij,jk->ik", A, B)
    close(tangent, 5 * f64(A) @ f64(B))


def test_vjp_and_linearize():
    _, vjp = jax.vjp(jax_nano.matmul, A, B)
    with kernels(2):
        da, db = vjp(G)
    close(da, f64(G) @ f64(B).T)
    close(db, f64(A).T @ f64(G))
    _, linear = jax.linearize(lambda a: jax_nano.matmul(a, B), A)
    with kernels(1):
        close(linear(2 * A), 2 * f64(A) @ f64(B))


def test_linear_transpose():
    transpose = jax.linear_transpose(lambda a: jax_nano.matmul(a, B), A)
    with kernels(1):
        (result,) = transpose(G)
    close(result, f64(G) @ f64(B).T)


def test_second_derivatives():
    def energy(s):  # x' S S x, whose Hessian in x is 2 S S symmetrised
        return lambda x: jax_nano.matmul(x, jax_nano.matmul(s, jax_nano.matmul(s, x)))

    with kernels():
        hessian = jax.hessian(energy(S))(S[0])
    square = f64(S) @ f64(S)
    close(hessian, square + square.T)
    twice = jax.grad(lambda x: jnp.vdot(jax.grad(energy(S))(x), S[1]))(S[0])
    close(twice, (square + square.T) @ f64(S[1]))


MIXED = [
    ("bfloat16", "float32", None),
    ("float32", "bfloat16", None),
    ("bfloat16", "bfloat16", "float32"),
    ("float32", "float32", "float32"),
]


@pytest.mark.parametrize(("lhs", "rhs", "preferred"), MIXED)
def test_gradients_of_mixed_products_have_jaxs_types(lhs, rhs, preferred):
    a, b = jnp.asarray(A, lhs), jnp.asarray(B, rhs)

    def types(dot_general):
        grads = jax.grad(lambda a, b: dot_general(a, b, MATRICES, preferred_element_type=preferred).sum(), (0, 1))(a, b)
        return [x.dtype for x in grads]

    assert types(jax_nano.dot_general) == types(lax.dot_general)


# In loops, products of matrices of at least 8 rows or columns are kernels: see tests/lowering/test_small_loops.py.
L = normal(9, 9, seed=4)


def test_scan_and_its_gradient():
    def powers(s, x):
        return lax.scan(lambda x, _: ((y := jax_nano.matmul(s, x)), y), x, None, length=3)[1].sum()

    with kernels(3):
        close(jax.jit(powers)(L, L), sum(np.linalg.matrix_power(f64(L), n).sum() for n in (2, 3, 4)))
    with kernels():
        gradient = jax.jit(jax.grad(powers, 1))(L, L)
    close(gradient, sum(np.linalg.matrix_power(f64(L).T, n) @ np.ones((9, 9)) for n in (1, 2, 3)))


def test_while_and_cond():
    def f(s, x, n):
        x = lax.while_loop(
            lambda state: state[0] < n, lambda state: (state[0] + 1, jax_nano.matmul(s, state[1])), (0, x)
        )[1]
        return lax.cond(n > 2, lambda: jax_nano.matmul(x, s), lambda: x)

    with kernels(4):
        close(jax.jit(f)(L, L, 3), np.linalg.matrix_power(f64(L), 5))
    with kernels(1):
        close(jax.jit(f)(L, L, 1), np.linalg.matrix_power(f64(L), 2))


def test_fori_loop_and_map():
    with kernels(4):
        close(lax.fori_loop(0, 4, lambda _, x: jax_nano.matmul(L, x), L), np.linalg.matrix_power(f64(L), 5))
    with kernels(3):
        assert_close(lax.map(lambda a: jax_nano.matmul(a, L), x := normal(3, 4, 9, seed=5)), "ijk,kl->ijl", x, L)


def test_remat():
    def loss(s, x):
        return jnp.sin(jax_nano.matmul(s, jnp.sin(jax_nano.matmul(s, x)))).sum()

    with kernels():
        recomputed = jax.jit(jax.grad(jax.checkpoint(loss)))(S, S[0])
    first = f64(S) @ f64(S[0])
    outer = np.cos(f64(S) @ np.sin(first))
    close(recomputed, np.outer(outer, np.sin(first)) + np.outer(np.cos(first) * (f64(S).T @ outer), f64(S[0])))


@pytest.mark.parametrize(
    ("policy", "products"),
    [
        ("everything_saveable", 4),
        ("dots_saveable", 4),
        ("dots_with_no_batch_dims_saveable", 4),
        ("nothing_saveable", 5),
    ],
)
def test_checkpoint_policies_know_the_product(policy, products):
    def loss(s, x):
        return jnp.sin(jax_nano.matmul(s, jnp.sin(jax_nano.matmul(s, x)))).sum()

    loss = jax.checkpoint(loss, policy=getattr(jax.checkpoint_policies, policy))
    names = primitives(jax.make_jaxpr(jax.grad(loss, 1))(S, S[0]).jaxpr)
    assert names.count("nano_dot_general") == products + (policy == "nothing_saveable")


def test_batched_products_are_recomputed_where_the_policy_says_so():
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    loss = jax.checkpoint(lambda a, b: jnp.sin(jax_nano.matmul(a, b)).sum(), policy=policy)
    names = primitives(jax.make_jaxpr(jax.grad(loss))(normal(2, 3, 4), normal(2, 4, 5)).jaxpr)
    assert names.count("nano_dot_general") == 3


def test_inside_custom_vjp():
    @jax.custom_vjp
    def product(a, b):
        return jax_nano.matmul(a, b)

    def backward(b, g):
        return 2 * jax_nano.matmul(g, b.T), jnp.zeros_like(b)

    product.defvjp(lambda a, b: (product(a, b), b), backward)
    with kernels(1):
        da, db = jax.jit(jax.grad(lambda a, b: (product(a, b) * G).sum(), (0, 1)))(A, B)
    close(da, 2 * f64(G) @ f64(B).T)
    close(db, np.zeros_like(B))


def test_inside_custom_jvp():
    @jax.custom_jvp
    def square(s):
        return jax_nano.matmul(s, s)

    square.defjvp(lambda p, t: (square(p[0]), 3 * jax_nano.matmul(p[0], t[0])))
    with kernels(2):
        primal, tangent = jax.jit(lambda s: jax.jvp(square, (s,), (2 * s,)))(S)
    close(primal, f64(S) @ f64(S))
    close(tangent, 6 * f64(S) @ f64(S))


def test_abstract_evaluation_runs_nothing():
    with kernels(0):
        shape = jax.eval_shape(jax_nano.matmul, jax.ShapeDtypeStruct((6, 5), "float32"), B)
        jaxpr = jax.make_jaxpr(jax_nano.matmul)(A, B)
    assert (shape.shape, shape.dtype) == ((6, 7), np.float32)
    assert primitives(jaxpr.jaxpr) == ["nano_dot_general"]


def test_compiled_ahead_of_time():
    program = jax.jit(jax_nano.matmul).lower(jax.ShapeDtypeStruct(A.shape, A.dtype), B).compile()
    with kernels(1):
        assert_close(program(A, B), "ij,jk->ik", A, B)


def test_named_scopes_reach_the_program():
    @jax.jit
    def f(a, b):
        with jax.named_scope("attention"):
            return jax_nano.matmul(a, b)

    assert "attention/nano_dot_general" in str(f.lower(A, B).compile().as_text())


def test_donated_operands():
    s = jnp.asarray(S)
    with kernels(1):
        result = jax.jit(lambda s: jax_nano.matmul(s, s), donate_argnums=0)(s)
    close(result, f64(S) @ f64(S))
    assert s.is_deleted()


def test_an_operand_used_twice_and_a_result_used_twice():
    with kernels(2):
        result = jax.jit(lambda s: (p := jax_nano.matmul(s, s)) + jax_nano.matmul(p, p).T)(S)
    square = f64(S) @ f64(S)
    close(result, square + (square @ square).T)


def test_without_jit():
    with jax.disable_jit(), kernels(1):
        assert_close(jax_nano.matmul(A, B), "ij,jk->ik", A, B)


def test_f64(x64):
    a, b = normal(6, 5, dtype=np.float64), normal(5, 7, dtype=np.float64)
    with kernels(3):
        assert_close(jax_nano.matmul(a, b), "ij,jk->ik", a, b)
        assert_close(jax.grad(lambda a: jax_nano.matmul(a, b).sum())(a), "ik,jk->ij", np.ones((6, 7)), b)


def test_roofline():
    from jax.experimental import roofline

    importlib.import_module("jax_nano.api.roofline")
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (A, B)]
    assert roofline.roofline(jax_nano.matmul)(*shapes)[1] == roofline.roofline(jnp.matmul)(*shapes)[1]


def test_under_checkify_and_debug_nans():
    from jax.experimental import checkify

    error, result = checkify.checkify(jax_nano.matmul, errors=checkify.float_checks)(A, B)
    error.throw()
    assert_close(result, "ij,jk->ik", A, B)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax_nano.matmul(A * np.nan, B)


def test_export_of_a_program_for_this_machine():
    allowed = jax_nano.export_checks()
    assert allowed == [jax.export.DisabledSafetyCheck.custom_call("jax_nano")]
    with jax_nano.exporting_kernels():
        program = jax.export.export(jax.jit(jax_nano.matmul), disabled_checks=allowed)(A, B)
    with kernels(1):
        assert_close(program.call(A, B), "ij,jk->ik", A, B)


def test_symbolic_sizes_run_as_lax():
    (m,) = jax.export.symbolic_shape("m")
    program = jax.export.export(jax.jit(jax_nano.matmul))(jax.ShapeDtypeStruct((m, 5), "float32"), B)
    with kernels(0):
        assert_close(program.call(A, B), "ij,jk->ik", A, B)


def test_serialized_executables_hold_their_kernels():
    from jax.experimental import serialize_executable

    program = jax.jit(jax_nano.matmul).lower(A, B).compile()
    loaded = serialize_executable.deserialize_and_load(
        *serialize_executable.serialize(program), execution_devices=jax.devices()[:1]
    )
    with kernels(1):
        assert_close(loaded(A, B), "ij,jk->ik", A, B)


@pytest.mark.parametrize("imports", ["jax, jax_nano", "jax_nano, jax", "jax_nano.schedule, jax"])
def test_another_process_loads_them(tmp_path, imports):
    from jax.experimental import serialize_executable

    program = serialize_executable.serialize(jax.jit(jax_nano.matmul).lower(A, B).compile())
    (tmp_path / "program").write_bytes(pickle.dumps((program, A, B)))
    code = f"""
import {imports}, pathlib, pickle
from jax.experimental.serialize_executable import deserialize_and_load
program, *operands = pickle.loads(pathlib.Path({str(tmp_path / "program")!r}).read_bytes())
deserialize_and_load(*program, execution_devices=jax.devices()[:1])(*operands)
print(jax_nano.executed_kernels())
"""
    assert run_python(code) == "1\n"


def test_the_compilation_cache_holds_kernels(tmp_path):
    code = f"""
import jax, numpy as np, jax_nano
jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
a = np.ones((20, 30), np.float32)
assert (jax_nano.matmul(a, a.T) == 30).all()
print(jax_nano.executed_kernels(), len(list(__import__("pathlib").Path({str(tmp_path)!r}).glob("jit_matmul-*-cache"))))
"""
    assert [run_python(code), run_python(code)] == ["1 1\n", "1 1\n"]


# Processes and threads.


def test_many_threads_compile_and_run_at_once():
    shapes = [(m, k, n) for m in (1, 3, 16) for k in (2, 33) for n in (4, 40)]

    def run(shape):
        m, k, n = shape
        a, b = normal(m, k), normal(k, n)
        for _ in range(20):
            assert_close(jax.jit(functools.partial(jax_nano.matmul))(a, b), "ij,jk->ik", a, b)

    with kernels(), concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(run, shapes * 2))


def test_a_fork_that_leaves_jax_alone():
    code = """
import os, warnings, numpy as np, jax_nano
warnings.simplefilter("ignore")
a = np.ones((300, 300), np.float32)
assert (jax_nano.matmul(a, a) == 300).all()
for _ in range(3):
    if (pid := os.fork()) == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (jax_nano.matmul(a, a) == 300).all()
print(jax_nano.executed_kernels())
"""
    assert run_python(code) == "4\n"


def test_import_creates_no_client():
    code = """
import jax_nano
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    assert run_python(code) == "False\n"
