"""install() reaches every product of every JAX program, and uninstall() leaves no trace."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import mlir as registry
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import ad
from oracle import assert_close, kernels, normal

import jax_nano
from jax_nano.jaxpr import private

A, B = normal(6, 5), normal(5, 7, seed=1)
private._rules_of(dot_general_p)  # one rule for all platforms, made of JAX's own
RULES = registry._lowerings
ORIGINAL = RULES[dot_general_p]
TRANSPOSITION = ad.primitive_transposes[dot_general_p]


@pytest.fixture(autouse=True)
def clean():
    yield
    jax_nano.uninstall()
    assert RULES[dot_general_p] is ORIGINAL
    assert ad.primitive_transposes[dot_general_p] is TRANSPOSITION
    assert dot_general_p not in registry._uncacheable_primitives


def test_install_and_uninstall():
    jax_nano.install()
    with kernels(1):
        assert_close(A @ jnp.asarray(B), "ij,jk->ik", A, B)
    jax_nano.install()
    jax_nano.uninstall()
    with kernels(0):
        assert_close(A @ jnp.asarray(B), "ij,jk->ik", A, B)
    jax_nano.uninstall()


PRODUCTS = {
    "matmul": (jnp.matmul, "ij,jk->ik"),
    "dot": (jnp.dot, "ij,jk->ik"),
    "einsum": (lambda a, b: jnp.einsum("ij,jk->ki", a, b), "ij,jk->ki"),
    "tensordot": (lambda a, b: jnp.tensordot(a, b, 1), "ij,jk->ik"),
    "vmap": (jax.vmap(jnp.matmul, (0, None)), "ij,jk->ik"),
    "grad": (jax.grad(lambda a, b: 0.5 * jnp.sum((a @ b) ** 2)), "ij,jk,lk->il"),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("jit", [False, True])
def test_programs_compiled_before_and_after(name, jit):
    f, subscripts = PRODUCTS[name]
    f = jax.jit(f) if jit else f
    operands = (A, B, B) if name == "grad" else (A, B)

    def run():
        result = f(A, B)
        if name == "grad":
            a, b = A.astype(np.float64), B.astype(np.float64)
            np.testing.assert_allclose(result, a @ b @ b.T, rtol=1e-5, atol=1e-5)
        else:
            assert_close(result, subscripts, *operands)

    with kernels(0):
        run()
    with jax_nano.installed(), kernels():
        run()
    with kernels(0):
        run()


def test_products_inside_control_flow():
    def f(s):
        s = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ s), s)
        return jax.lax.cond(s.sum() > 1e9, lambda: s, lambda: jax.checkpoint(lambda x: x @ x)(s))

    s = normal(9, 9)  # XLA does smaller ones inline
    with jax_nano.installed(), kernels(2):
        result = f(s)
    exact, s = s.astype(np.float64), s.astype(np.float64)
    for _ in range(3):
        exact = np.tanh(exact @ s)
    np.testing.assert_allclose(result, exact @ exact, rtol=1e-4, atol=1e-4)


def test_what_has_no_kernel_runs_as_before():
    a = A.astype(np.complex64) * (1 + 2j)
    with jax_nano.installed(), kernels(0):
        assert_close(jnp.matmul(a, B), "ij,jk->ik", a, B)


def test_blocks_nest():
    with jax_nano.installed():
        with jax_nano.installed():
            pass
        with kernels(1):
            jnp.matmul(A, B)
    with kernels(0):
        jnp.matmul(A, B)


def test_a_block_inside_of_install_leaves_it_installed():
    jax_nano.install()
    with jax_nano.installed():
        pass
    with kernels(1):
        jnp.matmul(A, B)


def test_uninstall_waits_for_open_blocks():
    with jax_nano.installed():
        jax_nano.uninstall()
        with kernels(1):
            jnp.matmul(A, B)
    assert RULES[dot_general_p] is ORIGINAL
    assert ad.primitive_transposes[dot_general_p] is TRANSPOSITION


def test_a_block_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), jax_nano.installed():
        _ = 1 / 0
    assert RULES[dot_general_p] is ORIGINAL
    assert ad.primitive_transposes[dot_general_p] is TRANSPOSITION


def test_blocks_of_many_threads_overlap():
    failures = []

    def work(seed):
        a, b = normal(6, 5, seed=seed), normal(5, 7, seed=seed)
        try:
            for _ in range(10):
                with jax_nano.installed():
                    assert RULES[dot_general_p] is not ORIGINAL
                    assert_close(jnp.matmul(a, b), "ij,jk->ik", a, b)
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert RULES[dot_general_p] is ORIGINAL
    assert ad.primitive_transposes[dot_general_p] is TRANSPOSITION


def test_a_program_held_by_the_caller_keeps_what_it_was_compiled_with():
    with jax_nano.installed():
        program = jax.jit(jnp.matmul).lower(A, B).compile()
    with kernels(1):
        assert_close(program(A, B), "ij,jk->ik", A, B)


def test_exported_programs_stay_portable():
    with jax_nano.installed(), kernels(0):
        program = jax.export.export(jax.jit(jnp.matmul))(A, B)
        assert_close(program.call(A, B), "ij,jk->ik", A, B)


def test_jax_issue_39103():
    """jaxlib 0.10.2 gives wrong sums for a jitted, vmapped matvec followed by a reduction, from 32,769 rows on."""
    rows, matrix = normal(32769, 3), normal(3, 3, seed=1)
    energy = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))
    exact = ((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(1)
    with jax_nano.installed(), kernels(1):
        np.testing.assert_allclose(energy(rows), exact, rtol=1e-4, atol=1e-5)


def test_products_whose_sums_have_one_term_stay_with_xla():
    """XLA multiplies, in one loop with what reads the product."""

    def step(w, x, g):
        return w - 0.1 * x.T @ g

    arrays = normal(8, 6), normal(1, 8), normal(1, 6)
    with jax_nano.installed():
        with kernels(0):
            found = jax.jit(step)(*arrays)
        with kernels(1):
            jax.jit(lambda w, x, g: w - 0.1 * jax_nano.matmul(x.T, g))(*arrays)
    np.testing.assert_allclose(found, step(*arrays), rtol=1e-6)
