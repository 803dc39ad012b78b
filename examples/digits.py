"""Trains a small network to read handwritten digits, its matrix products through jax_nano, then again through XLA.

The data is scikit-learn's: 1,797 images of 8 x 8 grey pixels. Prints how the two trainings compare, and draws some
digits with their predictions and the two loss curves into examples/digits.png.

usage: python examples/digits.py
"""

import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import jax_nano

LAYERS = (64, 512, 256, 10)
EPOCHS = 40
BATCH = 96
LEARNING_RATE = 0.05
MOMENTUM = 0.9
HELD_OUT = 397

Matmul = Callable[[jax.Array, jax.Array], jax.Array]
Params = list[dict[str, jax.Array]]


class Digits(NamedTuple):
    """Images of 64 pixels in [0, 1], and what they show."""

    images: np.ndarray
    labels: np.ndarray


class Training(NamedTuple):
    """What one training came to."""

    losses: np.ndarray  # one a step
    predictions: np.ndarray  # of the held-out digits
    compile_seconds: float
    train_seconds: float


def load() -> tuple[Digits, Digits]:
    """Shuffles the digits, and returns those to train on and those held out."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int32)
    return Digits(images[HELD_OUT:], labels[HELD_OUT:]), Digits(images[:HELD_OUT], labels[:HELD_OUT])


def initial_params() -> Params:
    """He initialisation: normal weights of variance 2 / inputs."""
    keys = jax.random.split(jax.random.key(0), len(LAYERS) - 1)
    return [
        {"w": jax.random.normal(key, (m, n)) * np.sqrt(2 / m), "b": jnp.zeros(n)}
        for key, m, n in zip(keys, LAYERS[:-1], LAYERS[1:], strict=True)
    ]


def logits(matmul: Matmul, params: Params, images: jax.Array) -> jax.Array:
    """The network: dense layers with ReLU between them."""
    *hidden, last = params
    for layer in hidden:
        images = jax.nn.relu(matmul(images, layer["w"]) + layer["b"])
    return matmul(images, last["w"]) + last["b"]


def loss(matmul: Matmul, params: Params, batch: Digits) -> jax.Array:
    """Mean cross-entropy."""
    scores = jax.nn.log_softmax(logits(matmul, params, batch.images))
    return -jnp.take_along_axis(scores, batch.labels[:, None], 1).mean()


def step(matmul: Matmul, state: tuple[Params, Params], batch: Digits) -> tuple[tuple[Params, Params], jax.Array]:
    """One step of gradient descent with momentum."""
    params, velocity = state
    value, gradient = jax.value_and_grad(loss, argnums=1)(matmul, params, batch)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
    params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
    return (params, velocity), value


def epochs(train: Digits) -> list[Digits]:
    """The batches of each epoch, stacked; every training sees the same ones."""
    shuffle, steps = np.random.default_rng(1), len(train.labels) // BATCH
    orders = [shuffle.permutation(len(train.labels))[: steps * BATCH].reshape(steps, BATCH) for _ in range(EPOCHS)]
    return [Digits(train.images[order], train.labels[order]) for order in orders]


def train_with(name: str, matmul: Matmul, train: Digits, held_out: Digits) -> Training:
    """Trains and predicts with `matmul` for every product, showing progress."""
    batches, params = epochs(train), initial_params()
    state = (params, jax.tree.map(jnp.zeros_like, params))

    start = time.perf_counter()
    run_epoch = (
        jax.jit(lambda s, b: jax.lax.scan(lambda s, b: step(matmul, s, b), s, b)).lower(state, batches[0]).compile()
    )
    predict = jax.jit(lambda p, x: logits(matmul, p, x).argmax(-1)).lower(params, held_out.images).compile()
    compiled = time.perf_counter()

    losses = []
    for epoch, batch in enumerate(batches, 1):
        state, values = run_epoch(state, batch)
        losses.append(np.asarray(values))
        show_progress(name, epoch, losses[-1].mean())
    predictions = np.asarray(predict(state[0], held_out.images))
    return Training(np.concatenate(losses), predictions, compiled - start, time.perf_counter() - compiled)


def show_progress(name: str, epoch: int, value: float) -> None:
    """Draws a bar: over itself on a terminal, and once, when done, elsewhere."""
    bar = ("█" * (30 * epoch // EPOCHS)).ljust(30, "░")
    last = epoch == EPOCHS
    if last or sys.stdout.isatty():
        print(f"\r{name:9s}{bar} {epoch:2d}/{EPOCHS} epochs, loss {value:.4f}", end="\n" if last else "", flush=True)


def draw(trainings: dict[str, Training], held_out: Digits, path: pathlib.Path) -> None:
    """Draws 24 digits with what jax_nano's network took them for, mistakes first, beside the loss curves."""
    predictions = trainings["jax_nano"].predictions
    mistakes_first = np.argsort(predictions == held_out.labels, kind="stable")[:24]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))

    left.suptitle("Held-out digits and predictions (mistakes in red)", fontsize=11)
    for axes, i in zip(left.subplots(4, 6).flat, mistakes_first, strict=True):
        right_or_wrong = "#444444" if predictions[i] == held_out.labels[i] else "#c62828"
        axes.imshow(held_out.images[i].reshape(8, 8), cmap="gray_r")
        axes.set_title(str(predictions[i]), color=right_or_wrong, fontsize=11, pad=2)
        axes.set_axis_off()

    axes = right.subplots()
    looks = {
        "jax_nano": {"color": "#1565c0", "linewidth": 3, "alpha": 0.5},
        "XLA": {"color": "#e65100", "linewidth": 1},
    }
    for name, training in trainings.items():
        axes.semilogy(training.losses, label=name, **looks[name])
    axes.set(xlabel="step", ylabel="training loss", title="The same training, twice")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains twice, and reports."""
    train, held_out = load()
    print(f"{len(train.labels)} digits to train on, {len(held_out.labels)} held out; layers of {LAYERS}\n")
    trainings = {}
    for name, matmul in (("jax_nano", jax_nano.matmul), ("XLA", jnp.matmul)):
        trainings[name] = train_with(name, matmul, train, held_out)

    print(f"\n{'':9s}  held-out accuracy   compiling   training")
    for name, training in trainings.items():
        accuracy = (training.predictions == held_out.labels).mean()
        print(f"{name:9s}{accuracy:17.2%}{training.compile_seconds:12.2f} s{training.train_seconds:9.2f} s")
    difference = np.abs(trainings["jax_nano"].losses - trainings["XLA"].losses).max()
    print(f"\nlargest difference of the loss curves: {difference:.1e}")
    print(f"products that ran as jax_nano's kernels: {jax_nano.executed_kernels():,}")

    path = pathlib.Path(__file__).with_name("digits.png")
    draw(trainings, held_out, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
