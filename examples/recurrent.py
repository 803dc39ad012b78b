"""Trains an LSTM to continue sonnets by Shakespeare, beside plain XLA and, where there is one, torch.nn.LSTM's speed.

The network is lax.scan over characters: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8),
1997. Under jax_nano.accelerate a scan is one kernel, and so is the scan that its gradient is; what a step makes of a
character alone, and the gradients of weights, are products of all steps at once. Prints the loss in bits for each
character and the time of a step, and draws both to recurrent.png.

usage: python examples/recurrent.py [--steps 200] [--hidden 256]
"""

import argparse
import importlib.util
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from matplotlib.figure import Figure

import jax_nano
from jax_nano.runtime.progress import progress

TEXT = pathlib.Path(__file__).with_name("sonnets.txt")
LENGTH = 64  # characters of a row
BATCH = 32
FEATURES = 64  # of a character
PRODUCTS: dict[str, Callable[..., Any]] = {"jax_nano": jax_nano.accelerate, "XLA": lambda f: f}

Params = dict[str, Array]


def initial_params(hidden: int, characters: int) -> Params:
    """Weights of an LSTM and of what reads its state."""
    shapes = {"vectors": (characters, FEATURES), "w": (FEATURES, 4 * hidden), "u": (hidden, 4 * hidden),
              "out": (hidden, characters)}  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(shapes))
    weights = {
        name: jax.random.normal(key, shape) / math.sqrt(shape[0])
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return weights | {"b": jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1.0)}


def states(params: Params, rows: Array) -> Array:
    """The states behind each character of (batch, time) of them: (time, batch, hidden)."""

    def step(carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carry
        i, f, g, o = jnp.split(x @ params["w"] + h @ params["u"] + params["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((len(rows), params["u"].shape[0]))
    return lax.scan(step, (zeros, zeros), params["vectors"][rows.T])[1]


def loss(params: Params, rows: Array) -> Array:
    """Mean bits for each character of rows, the ones before it being known."""
    logs = jax.nn.log_softmax(states(params, rows[:, :-1]) @ params["out"])
    return -jnp.take_along_axis(logs, rows.T[1:, :, None], -1).mean() / math.log(2)


def train(name: str, params: Params, rows: np.ndarray, steps: int) -> tuple[list[float], float]:
    """Trains by Adam, showing progress, and gives the losses and the seconds of a step."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    @jax.jit
    @PRODUCTS[name]
    def step(params: Params, state: Any, batch: Array) -> tuple[Any, Any, Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values, seconds, rng = optimizer.init(params), [], [], np.random.default_rng(0)
    with progress(steps, f"training by {name}") as bar:
        for _ in range(steps):
            batch = rows[rng.integers(len(rows), size=BATCH)]
            start = time.perf_counter()
            params, state, value = step(params, state, batch)
            values.append(float(value))
            seconds.append(time.perf_counter() - start)
            bar.advance(f"{values[-1]:.2f} bits")
    return values, float(np.median(seconds))


def torch_seconds(hidden: int, steps: int = 20) -> float | None:
    """The seconds that torch.nn.LSTM takes forwards and backwards for a batch; None where there is no PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]

    lstm, x, seconds = torch.nn.LSTM(FEATURES, hidden), torch.randn(LENGTH, BATCH, FEATURES), []
    for _ in range(steps):
        start = time.perf_counter()
        lstm(x)[0].sum().backward()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def draw(results: dict[str, tuple[list[float], float]], path: pathlib.Path) -> None:
    """Draws losses, and the time of a step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (values, _) in results.items():
        left.plot(values, label=name, linewidth=1 if name == "XLA" else 4)  # one line on the other
    left.set(xlabel="step", ylabel="bits for a character")
    left.legend()
    right.bar(list(results), [1e3 * seconds for _, seconds in results.values()])
    right.set(ylabel="ms for a step")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains with jax_nano and with XLA, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    text = TEXT.read_text()
    characters = sorted(set(text))
    numbers = np.array([characters.index(x) for x in text], np.int32)
    rows = np.lib.stride_tricks.sliding_window_view(numbers, LENGTH + 1)
    params = initial_params(args.hidden, len(characters))
    results = {}
    for name in PRODUCTS:
        results[name] = train(name, params, rows, args.steps)
        values, seconds = results[name]
        last = np.mean(values[-10:])
        print(f"{name:9}{values[0]:6.2f} bits at first, {last:5.2f} at last;{1e3 * seconds:8.2f} ms a step")
    gradient = jax_nano.inspect(jax.grad(loss), params, rows[:BATCH])
    print("\n".join(f"  {report.equation}: {report.ran_as}" for report in gradient if "scan" in report.equation))
    if seconds := torch_seconds(args.hidden):
        print(f"torch.nn.LSTM alone, forwards and backwards:{1e3 * seconds:8.2f} ms")
    path = pathlib.Path(__file__).with_name("recurrent.png")
    draw(results, path)
    print(f"drawn to {path.name}; kernels that ran: {jax_nano.executed_kernels():,}")


if __name__ == "__main__":
    main()
