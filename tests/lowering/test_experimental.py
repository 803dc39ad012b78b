"""jax.experimental.jet and sparse, and jax_remat3, of every primitive of jax_nano."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import jet, sparse
from oracle import kernels, normal, primitives

import jax_nano

X, W = normal(6, 5), normal(5, 7, seed=1)
PROGRAMS = {
    "matmul": (lambda x: jax_nano.matmul(x, W), lambda x: x @ W),
    "fused_matmul": (lambda x: jax_nano.fused_matmul(x, W, epilogue=jnp.tanh), lambda x: jnp.tanh(x @ W)),
    "accelerate": (jax_nano.accelerate(lambda x: jnp.tanh(x @ W) @ W.T), lambda x: jnp.tanh(x @ W) @ W.T),
    "under jit": (jax.jit(jax_nano.accelerate(lambda x: jnp.tanh(x @ W))), lambda x: jnp.tanh(x @ W)),
}
every_program = pytest.mark.parametrize("ours, plain", PROGRAMS.values(), ids=list(PROGRAMS))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@every_program
@pytest.mark.parametrize("order", [1, 3])
def test_jet(ours, plain, order):
    terms = [normal(6, 5, seed=i) for i in range(order)]
    with kernels():
        primal, series = jet.jet(ours, (X,), (terms,))
    expected, expected_series = jet.jet(plain, (X,), (terms,))
    close(primal, expected)
    for term, other in zip(series, expected_series, strict=True):
        close(term, other)


def test_jet_of_a_convolution_that_is_transposed():
    x, w = normal(2, 16, 9, 10), normal(16, 16, 3, 3)
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME")  # noqa: E731
    arguments = (x, w), ((x, x), (w, w))
    found, expected = (jet.jet(f, *arguments, factorial_scaled=False) for f in (jax_nano.accelerate(conv), conv))
    for got, true in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, true, rtol=1e-4, atol=1e-3)


def test_accelerate_of_a_function_that_calls_jet():
    def f(x):
        return jet.jet(lambda x: jnp.tanh(x @ W), (x,), ((x,),))[1][0]

    close(jax_nano.accelerate(f)(X), f(X))
    close(jax.jit(jax_nano.accelerate(f))(X), f(X))


@pytest.mark.parametrize("weight", [jax_nano.pack, jax_nano.quantize])
def test_jet_of_products_with_weights(weight):
    """Series of the other operand; a weight itself has none."""
    kept = weight(W)
    primal, (term,) = jet.jet(jax_nano.accelerate(lambda x: x @ kept), (X,), ((X,),))
    close(primal, X @ np.asarray(kept))
    close(term, X @ np.asarray(kept))


@every_program
@pytest.mark.parametrize("kind", [sparse.BCOO, sparse.BCSR])
def test_sparsify(ours, plain, kind):
    dense = X * (X > 0)
    if kind is sparse.BCSR and "tanh" in str(jax.make_jaxpr(plain)(X)):
        pytest.skip("JAX has no rule for tanh of BCSR")
    close(sparse.sparsify(ours)(kind.fromdense(dense)), plain(dense))


@every_program
def test_sparsify_of_dense_arrays_runs_kernels(ours, plain):
    with kernels():
        close(sparse.sparsify(ours)(X), plain(X))


@pytest.fixture
def remat3():
    if jax.__version_info__ < (0, 11):
        pytest.skip("jax_remat3 was begun in JAX 0.10, where it saves no fused products")
    before = getattr(jax.config, "jax_remat3")  # noqa: B009
    jax.config.update("jax_remat3", True)
    yield
    jax.config.update("jax_remat3", before)


def network(x, weights):
    for w in weights:
        x = jnp.tanh(x @ w)
    return x.sum()


@pytest.mark.parametrize("policy", ["dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["matrices", "batches"])
def test_remat3_runs_as_many_products_as_plain_jax(remat3, policy, batch):
    weights = [normal(*batch, 8, 8, seed=i) for i in range(3)]
    x = normal(*batch, 4, 8)
    saved = getattr(jax.checkpoint_policies, policy)

    def products(f):
        jaxpr = jax.make_jaxpr(jax.grad(f))(x, weights).jaxpr
        return sum(name in ("dot_general", "nano_dot_general", "nano_region") for name in primitives(jaxpr))

    plain = products(jax.checkpoint(network, policy=saved))
    assert products(jax.checkpoint(jax_nano.accelerate(network), policy=saved)) <= plain
    assert products(jax_nano.accelerate(jax.checkpoint(network, policy=saved))) <= plain
    gradient = jax.grad(jax.checkpoint(jax_nano.accelerate(network), policy=saved))(x, weights)
    close(gradient, jax.grad(network)(x, weights))


def test_numpy_arrays_without_jit():
    with jax.disable_jit():
        close(jax_nano.fused_matmul(X, W, epilogue=jnp.tanh), np.tanh(X @ W))


def test_nan_is_found_in_fused_products_of_numpy_arrays():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax_nano.fused_matmul(X * np.nan, W, epilogue=jnp.tanh)


@pytest.mark.parametrize("choice", [np.bool_(True), np.int32(3), np.float32(0.5)])
def test_numpy_scalars_reach_functions_as_they_are(choice):
    def f(x, choice):
        assert not isinstance(choice, jax.Array)
        return (x @ W)[: int(choice)] if choice > 0 else x

    close(jax_nano.accelerate(f)(X, choice), f(X, choice))
