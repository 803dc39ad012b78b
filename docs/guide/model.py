"""A small model of flax, for `python -m jax_nano doctor` to look at."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jax_nano


class Network(nn.Module):
    """A convolution, then a layer of a transformer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores of 10 classes."""
        x = nn.relu(nn.Conv(64, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1, 64)
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(y, y)
        x = x + nn.Dense(64)(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


network, images = Network(), jnp.ones((16, 32, 32, 3))
variables = jax.jit(network.init)(jax.random.key(0), images)
predict = jax.jit(jax_nano.accelerate(network.apply))
for _ in range(100):
    predict(variables, images).block_until_ready()
