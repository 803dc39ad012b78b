"""Which programs XLA runs on a thread of its own: those of long kernels and of large results."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jax_nano
from jax_nano.lowering.custom_call import HINT_ELEMENTS


def compiled(f, *operands):
    return jax.jit(f).lower(*operands).compile()


def operations(program):
    """What XLA counts, of which 1000 are enough."""
    return program.cost_analysis()["flops"]


LARGE = (1024, 8), (8, 1024)


@pytest.mark.parametrize("shapes", [LARGE, ((1, 4096), (4096, 4096))], ids=str)
def test_a_large_result_and_a_long_kernel_count_as_much_work(shapes):
    a, b = map(jnp.ones, shapes)
    program = compiled(jax_nano.matmul, a, b)
    assert operations(program) >= 1000
    assert np.array_equal(program(a, b), a @ b)


def test_a_short_kernel_stays_on_the_callers_thread():
    a = jnp.ones((64, 64))
    assert operations(compiled(jax_nano.matmul, a, a)) < 1000


def test_a_kernel_of_computed_operands_is_called_as_it_is():
    a, b = map(jnp.ones, LARGE)
    text = compiled(lambda a, b: jax_nano.matmul(jnp.sin(a), jnp.cos(b)), a, b).as_text() or ""
    assert f"s32[{HINT_ELEMENTS}]" not in text


@pytest.mark.parametrize(
    "dtype",
    [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8, jnp.uint8, jnp.int4, ml_dtypes.float8_e4m3fn],
    ids=lambda dtype: np.dtype(dtype).name,
)
@pytest.mark.parametrize("first", [0, -1, np.nan], ids=str)
def test_the_dispatch_hint_is_made_of_any_number_of_any_type(dtype, first):
    if np.isnan(first) and not jnp.issubdtype(dtype, jnp.floating):
        first = 1
    a = jnp.ones(LARGE[0]).at[0, 0].set(first).astype(dtype)
    b = jnp.ones(LARGE[1]).astype(dtype)
    out = jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32
    product = jax.jit(lambda a, b: jax_nano.matmul(a, b, preferred_element_type=out))
    want = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert np.array_equal(np.asarray(product(a, b), np.float64), want, equal_nan=True)


def test_under_vmap_and_scan():
    a, b = map(jnp.ones, LARGE)

    def step(carry, a):
        return carry + jax_nano.matmul(a, b).sum(), None

    total, _ = jax.jit(lambda a: jax.lax.scan(step, 0.0, a))(jnp.stack([a] * 3))
    assert total == 3 * 8 * 1024 * 1024
    assert np.array_equal(jax.vmap(jax_nano.matmul, (0, None))(jnp.stack([a] * 3), b), jnp.stack([a @ b] * 3))
