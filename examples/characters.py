"""Trains a small network to continue sonnets by Shakespeare, character by character, and lets it write.

It takes the characters before for vectors and makes of them, through dense layers, what may follow: the model of Bengio
et al., "A Neural Probabilistic Language Model", JMLR 3, 2003. The network, its derivatives and the optimizer's step are
one function of plain JAX and optax, which jax_nano.accelerate gives its products. Prints the loss as it falls, in bits
for each character, and what the network writes in the end.

The text, examples/sonnets.txt, is 32 of the 154 sonnets of 1609, in modern spelling; it is in the public domain.

usage: python examples/characters.py [--steps 400]
"""

import argparse
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import jax_nano

TEXT = pathlib.Path(__file__).with_name("sonnets.txt")
WINDOW = 8  # characters that the network sees
FEATURES = 32  # of a character
BATCH = 512
HELD_OUT = 0.1  # of the text, its end
REPORTS = 10
TEMPERATURE = 0.5

Params = dict[str, Any]


class Text(NamedTuple):
    """A text as numbers of characters, and the characters by their numbers."""

    numbers: np.ndarray
    characters: str

    @classmethod
    def read(cls) -> "Text":
        """The sonnets."""
        text = TEXT.read_text()
        characters = "".join(sorted(set(text)))
        return cls(np.array([characters.index(x) for x in text], np.int32), characters)

    def written(self, numbers: Array | np.ndarray) -> str:
        """Numbers as characters."""
        return "".join(self.characters[i] for i in np.asarray(numbers))


def initial_params(hidden: int, layers: int, characters: int) -> Params:
    """Normal weights: vectors of characters, and He's initialisation of layers."""
    sizes = [WINDOW * FEATURES, *[hidden] * layers, characters]
    keys = jax.random.split(jax.random.key(0), len(sizes))
    dense = [
        {"w": jax.random.normal(key, (m, n)) * math.sqrt(2 / m), "b": jnp.zeros(n)}
        for key, m, n in zip(keys[1:], sizes[:-1], sizes[1:], strict=True)
    ]
    return {"vectors": jax.random.normal(keys[0], (characters, FEATURES)), "layers": dense}


def scores(params: Params, windows: Array) -> Array:
    """What may follow (batch, WINDOW) characters: (batch, characters)."""
    x = params["vectors"][windows].reshape(len(windows), -1)
    *hidden, last = params["layers"]
    for layer in hidden:
        x = jax.nn.gelu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def loss(params: Params, rows: Array) -> Array:
    """Mean bits for the last character of each row, WINDOW others standing before it."""
    logs = jax.nn.log_softmax(scores(params, rows[:, :-1]))
    return -jnp.take_along_axis(logs, rows[:, -1:], -1).mean() / math.log(2)


def sample(params: Params, start: Array, key: Array, count: int) -> Array:
    """Characters that the network draws after a start of WINDOW characters."""

    def draw(window: Array, key: Array) -> tuple[Array, Array]:
        number = jax.random.categorical(key, scores(params, window[None])[0] / TEMPERATURE).astype(window.dtype)
        return jnp.append(window[1:], number), number

    return lax.scan(draw, start, jax.random.split(key, count))[1]


def train(params: Params, text: Text, steps: int) -> Params:
    """Trains by AdamW, and prints how it goes."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=0.1)
    rows = np.lib.stride_tricks.sliding_window_view(text.numbers, WINDOW + 1)
    seen, unseen = np.split(rows, [int(len(rows) * (1 - HELD_OUT))])
    rng = np.random.default_rng(0)

    @jax.jit
    @jax_nano.accelerate
    def step(params: Params, state: Any, batch: Array) -> tuple[Params, Any, Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    test = jax.jit(jax_nano.accelerate(loss))
    state, values, start = optimizer.init(params), [], time.perf_counter()
    for i in range(1, steps + 1):
        params, state, value = step(params, state, seen[rng.integers(len(seen), size=BATCH)])
        values.append(value)
        if i % max(1, steps // REPORTS) == 0:
            bits, seconds = np.mean(values), time.perf_counter() - start
            print(f"step {i:5d}{bits:7.2f} bits, {test(params, unseen):5.2f} of text held out{seconds:8.1f} s")
            values = []
    return params


def main() -> None:
    """Trains, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=512, help="the width of hidden layers")
    parser.add_argument("--layers", type=int, default=2, help="how many of them")
    parser.add_argument("--count", type=int, default=400, help="how many characters to write")
    args = parser.parse_args()
    text = Text.read()
    params = initial_params(args.hidden, args.layers, len(text.characters))
    print(f"{len(text.numbers):,} characters; {sum(x.size for x in jax.tree.leaves(params)):,} weights\n")
    params = train(params, text, args.steps)

    start = text.numbers[: text.written(text.numbers).index("\n", WINDOW) + 1]
    write = jax.jit(jax_nano.accelerate(sample), static_argnames="count")
    written = write(params, start[-WINDOW:], jax.random.key(0), args.count)
    print(f"\n{text.written(start)}{text.written(written)}\n")
    print(f"products that ran as jax_nano's kernels: {jax_nano.executed_kernels():,}")


if __name__ == "__main__":
    main()
