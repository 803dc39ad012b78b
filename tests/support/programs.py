"""Programs with products in every place that JAX has for one."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def with_vjp(x, s):
    return jnp.sin(x @ s)


with_vjp.defvjp(lambda x, s: (jnp.sin(x @ s), (x, s)), lambda r, g: (g @ r[1].T, r[0].T @ g))


@jax.custom_jvp
def with_jvp(x, s):
    return jnp.sin(x @ s)


@with_jvp.defjvp
def _(primals, tangents):
    (x, s), (dx, ds) = primals, tangents
    return with_jvp(x, s), jnp.cos(x @ s) * (dx @ s + x @ ds)


@jax.custom_batching.custom_vmap
def with_vmap(x, s):
    return x @ s


@with_vmap.def_vmap
def _(size, batched, x, s):
    return jnp.matmul(x, s), any(batched)


# Each of x and s, square matrices of one size.
PROGRAMS = {
    "jit": lambda x, s: jax.jit(lambda x: x @ s)(x),
    "nested jit": lambda x, s: jax.jit(lambda x: jax.jit(lambda x: jnp.sin(x @ s))(x) @ s)(x),
    "scan": lambda x, s: lax.scan(lambda x, _: (jnp.tanh(x @ s), None), x, None, length=2)[0],
    "fori_loop": lambda x, s: lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ s), x),
    "while": lambda x, s: lax.while_loop(lambda x: (x @ s).sum() < 9, lambda x: x + s @ s.T, x),
    "cond": lambda x, s: lax.cond(x.sum() > 0, lambda x: x @ s, lambda x: s @ x, x),
    "switch": lambda x, s: lax.switch(1, [lambda x: x, lambda x: x @ s], x),
    "remat": lambda x, s: jax.checkpoint(lambda x: jnp.sin(x @ s) @ s)(x),
    "custom_vjp": with_vjp,
    "custom_jvp": with_jvp,
    "custom_vmap": with_vmap,
    "vmap": jax.vmap(jnp.matmul, (0, None)),
    "vmap of custom_vmap": jax.vmap(with_vmap, (0, None)),
    "grad": lambda x, s: jax.grad(lambda x: jnp.sin(x @ s).sum())(x),
    "solve": lambda x, s: jnp.linalg.inv(s) @ x,
}
# What JAX itself does not differentiate so.
FORWARD_ONLY = {"while", "custom_vmap"}
REVERSE_ONLY = {"custom_vjp"}
