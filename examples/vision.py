"""Recognizes images with a ResNet-18, by jax_nano, by plain XLA, and by PyTorch where that is installed.

The network has its true shape, in f32 and bf16; its weights are random, or those of a checkpoint in safetensors under
torchvision's names; jax_nano also takes them packed, and as integers of 8 bits. Prints how many images of 224 x 224 a
second each way reads. Then a small network learns scikit-learn's digits, and its first filters and what it takes some
digits for are drawn into examples/vision.png.

usage: python examples/vision.py [--checkpoint resnet18.safetensors] [--batch 8] [--size 224] [--types f32 bf16]
                                 [--weights arrays packed int8 "int8 images"]
"""

import argparse
import functools
import importlib
import importlib.util
import itertools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import jax_nano
from jax_nano.runtime.progress import progress

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # of two blocks each: channels, and the stride of the first
TURNS = 5
DTYPES: dict[str, Any] = {"f32": jnp.float32, "bf16": jnp.bfloat16}
Params = dict[str, Array]  # by torchvision's names
KEPT: dict[str, Callable[..., Any]] = {
    "packed": jax_nano.pack,
    "int8": jax_nano.quantize,
    "int8 images": functools.partial(jax_nano.quantize, activations="int8"),
}


# ResNet-18


def convolve(x: Array, w: Array, stride: int = 1) -> Array:
    """A convolution of (N, H, W, C) by (H, W, C, O), padded as PyTorch pads it."""
    pad = (w.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def norm(params: Params, name: str, x: Array) -> Array:
    """Batch normalization by what was seen in training: a scale and a shift."""
    scale = params[f"{name}.weight"] * lax.rsqrt(params[f"{name}.running_var"] + 1e-5)
    return x * scale + (params[f"{name}.bias"] - params[f"{name}.running_mean"] * scale)


def block(params: Params, name: str, x: Array, stride: int) -> Array:
    """Two convolutions beside what is carried on."""
    y = jax.nn.relu(norm(params, f"{name}.bn1", convolve(x, params[f"{name}.conv1.weight"], stride)))
    y = norm(params, f"{name}.bn2", convolve(y, params[f"{name}.conv2.weight"]))
    if f"{name}.downsample.0.weight" in params:
        x = norm(params, f"{name}.downsample.1", convolve(x, params[f"{name}.downsample.0.weight"], stride))
    return jax.nn.relu(x + y)


def resnet18(params: Params, x: Array) -> Array:
    """The scores of 1000 classes, of images (N, 224, 224, 3), or of other sizes."""
    x = jax.nn.relu(norm(params, "bn1", convolve(x, params["conv1.weight"], 2)))
    x = lax.reduce_window(
        x, np.array(-np.inf, x.dtype), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    for i, (_, stride) in enumerate(STAGES, 1):
        x = block(params, f"layer{i}.0", x, stride)
        x = block(params, f"layer{i}.1", x, 1)
    return x.mean((1, 2)) @ params["fc.weight"] + params["fc.bias"]


def shapes() -> dict[str, tuple[int, ...]]:
    """The parameters, kernels as (H, W, C, O)."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, bn: str, shape: tuple[int, ...]) -> None:
        found[f"{conv}.weight"] = shape
        found.update({f"{bn}.{name}": shape[-1:] for name in ("weight", "bias", "running_mean", "running_var")})

    layer("conv1", "bn1", (7, 7, 3, 64))
    inputs = 64
    for i, (channels, stride) in enumerate(STAGES, 1):
        for j in range(2):
            name = f"layer{i}.{j}"
            layer(f"{name}.conv1", f"{name}.bn1", (3, 3, inputs, channels))
            layer(f"{name}.conv2", f"{name}.bn2", (3, 3, channels, channels))
            if j == 0 and (stride > 1 or inputs != channels):
                layer(f"{name}.downsample.0", f"{name}.downsample.1", (1, 1, inputs, channels))
            inputs = channels
    return found | {"fc.weight": (512, 1000), "fc.bias": (1000,)}


def random_params(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Kernels that keep the size of what goes through them; normalization as it begins."""
    params = {}
    for name, shape in shapes().items():
        if len(shape) > 1:
            params[name] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            params[name] = np.full(shape, float(name.endswith(("weight", "running_var"))))
    return params


def load_params(path: str) -> dict[str, np.ndarray]:
    """A checkpoint's, whose kernels are (O, C, H, W)."""
    from safetensors.numpy import load_file

    loaded = load_file(path)
    params = {}
    for name, shape in shapes().items():
        array = loaded[name]
        params[name] = array.transpose(2, 3, 1, 0) if array.ndim == len("OCHW") else array.T
        if params[name].shape != shape:
            raise SystemExit(f"{name} of {path} is {params[name].shape}; a ResNet-18 has {shape}")
    return params


# Speed


def torch_network(params: dict[str, np.ndarray], dtype: str) -> Callable[[np.ndarray], Any] | None:
    """The network by PyTorch, channels last; None where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]

    def tensor(array: np.ndarray) -> Any:
        array = array.transpose(3, 2, 0, 1) if array.ndim == len("HWCO") else array
        found = torch.tensor(np.ascontiguousarray(array, np.float32)).to(kind)
        return found.to(memory_format=torch.channels_last) if array.ndim == len("HWCO") else found

    weights = {name: tensor(array) for name, array in params.items()}

    def conv(x: Any, name: str, bn: str, stride: int = 1) -> Any:
        w = weights[f"{name}.weight"]
        scale = weights[f"{bn}.weight"] * torch.rsqrt(weights[f"{bn}.running_var"] + 1e-5)
        shift = weights[f"{bn}.bias"] - weights[f"{bn}.running_mean"] * scale
        return functional.conv2d(x, w * scale[:, None, None, None], shift, stride, (w.shape[2] - 1) // 2)

    def run(images: np.ndarray) -> Any:
        with torch.inference_mode():
            x = torch.relu(conv(tensor(images.transpose(1, 2, 3, 0)), "conv1", "bn1", 2))
            x = functional.max_pool2d(x, 3, 2, 1)
            for i, (_, stride) in enumerate(STAGES, 1):
                for j in range(2):
                    name, step = f"layer{i}.{j}", stride if j == 0 else 1
                    y = torch.relu(conv(x, f"{name}.conv1", f"{name}.bn1", step))
                    y = conv(y, f"{name}.conv2", f"{name}.bn2")
                    if f"{name}.downsample.0.weight" in weights:
                        x = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", step)
                    x = torch.relu(x + y)
            return x.mean((2, 3)) @ weights["fc.weight"] + weights["fc.bias"]

    return run


def seconds(runs: dict[str, Callable[[], Any]], dtype: str) -> dict[str, float]:
    """The shortest time of each, in turns."""
    best = {}
    with progress((TURNS + 1) * len(runs), f"ResNet-18, {dtype}") as bar:
        for turn, (name, run) in itertools.product(range(TURNS + 1), runs.items()):
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            best[name] = min(best.get(name, taken), taken) if turn > 1 else taken
            bar.advance(name)
        bar.finish(f"{TURNS} turns")
    return best


def kept_as(weights: Params, name: str) -> dict[str, Any]:
    """The weights as arrays, or in another form."""
    if name == "arrays":
        return weights
    specs = {len("HWIO"): "HWIO", len("IO"): "IO"}
    return jax_nano.map_kernels(KEPT[name], weights, lambda _, array: specs.get(array.ndim))


def compare(params: dict[str, np.ndarray], dtype: str, shape: tuple[int, ...], forms: list[str]) -> None:
    """Prints the images a second of each way to run the network, of images in this shape."""
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    weights = {name: jnp.asarray(array, DTYPES[dtype]) for name, array in params.items()}
    x = jnp.asarray(images, DTYPES[dtype])
    xla = jax.jit(resnet18)
    nano = jax.jit(jax_nano.accelerate(lambda weights, x: resnet18(jax_nano.as_arrays(weights), x)))
    kept = {f"jax_nano, {form}": kept_as(weights, form) for form in forms}
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(lambda w: nano(w, x).block_until_ready(), w) for name, w in kept.items()
    }
    runs["XLA"] = lambda: xla(weights, x).block_until_ready()
    if torch := torch_network(params, dtype):
        runs["PyTorch"] = lambda: torch(images)
    wide = {name: w.astype(jnp.float32) for name, w in weights.items()}
    wanted = np.asarray(xla(wide, x.astype(jnp.float32)))
    for name, taken in seconds(runs, dtype).items():
        note = ""
        if name in kept:
            error = np.abs(wanted - np.asarray(nano(kept[name], x), np.float32)).max() / np.abs(wanted).max()
            note = f"   within {error:.1e} of XLA in f32"
        print(f"{dtype:5s}{name:22s}{len(images) / taken:9.1f} images/s{note}")


# Digits


class Digits(NamedTuple):
    """Images of 8 x 8 pixels in [0, 1], and what they show."""

    images: np.ndarray
    labels: np.ndarray


def small_network(params: list[Array], x: Array) -> Array:
    """Two convolutions and a dense layer."""
    first, bias1, second, bias2, dense, bias3 = params
    x = jax.nn.relu(convolve(x, first) + bias1)
    x = jax.nn.relu(convolve(x, second, 2) + bias2)
    return x.reshape(x.shape[0], -1) @ dense + bias3


def learn(train: Digits, held_out: Digits, epochs: int, batch: int = 64) -> tuple[list[Array], np.ndarray]:
    """Trains by gradient descent with momentum; gives the parameters, and what they take held-out digits for."""
    rng = np.random.default_rng(0)
    sizes = ((3, 3, 1, 32), (3, 3, 32, 64), (16 * 64, 10))
    params = []
    for shape in sizes:
        params.append(jnp.asarray(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1])), jnp.float32))
        params.append(jnp.zeros(shape[-1]))

    def loss(params: list[Array], x: Array, y: Array) -> Array:
        scores = jax.nn.log_softmax(small_network(params, x))
        return -jnp.take_along_axis(scores, y[:, None], 1).mean()

    @jax.jit
    @jax_nano.accelerate
    def step(
        params: list[Array], velocity: list[Array], x: Array, y: Array, rate: float
    ) -> tuple[list[Array], list[Array], Array]:
        value, gradient = jax.value_and_grad(loss)(params, x, y)
        velocity = [0.9 * v + g + 1e-3 * p for v, g, p in zip(velocity, gradient, params, strict=True)]
        return [p - rate * v for p, v in zip(params, velocity, strict=True)], velocity, value

    velocity = [jnp.zeros_like(p) for p in params]
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(train.labels))
        value, rate = jnp.zeros(()), 0.015 * (1 + np.cos(np.pi * (epoch - 1) / epochs))
        for i in range(0, len(order) - batch + 1, batch):
            chosen = order[i : i + batch]
            params, velocity, value = step(params, velocity, train.images[chosen], train.labels[chosen], rate)
        show_progress(epoch, epochs, float(value))
    predict = jax.jit(jax_nano.accelerate(lambda params, x: small_network(params, x).argmax(-1)))
    return params, np.asarray(predict(params, held_out.images))


def show_progress(epoch: int, epochs: int, value: float) -> None:
    """Draws a bar: over itself on a terminal, and once, when done, elsewhere."""
    bar = ("█" * (30 * epoch // epochs)).ljust(30, "░")
    if epoch == epochs or sys.stdout.isatty():
        end = "\n" if epoch == epochs else ""
        print(f"\rdigits   {bar} {epoch:2d}/{epochs} epochs, loss {value:.4f}", end=end, flush=True)


def load() -> tuple[Digits, Digits]:
    """Shuffles the digits, and gives those to train on and those held out."""
    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.images[order, ..., None] / 16).astype(np.float32), data.target[order].astype(np.int32)
    return Digits(images[397:], labels[397:]), Digits(images[:397], labels[:397])


def draw(first: np.ndarray, predictions: np.ndarray, held_out: Digits, path: pathlib.Path) -> None:
    """Draws the first layer's filters, and 24 digits with what the network took them for, mistakes first."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)  # pyright: ignore[reportGeneralTypeIssues]
    left.suptitle("First layer's filters")
    for axes, i in zip(left.subplots(4, 8).flat, range(first.shape[-1]), strict=True):
        axes.imshow(first[:, :, 0, i], cmap="RdBu", vmin=-np.abs(first).max(), vmax=np.abs(first).max())
        axes.set_axis_off()
    right.suptitle("Held-out digits and predictions (mistakes in red)")
    chosen = np.argsort(predictions == held_out.labels, kind="stable")[:24]
    for axes, i in zip(right.subplots(4, 6).flat, chosen, strict=True):
        axes.imshow(held_out.images[i, ..., 0], cmap="gray_r")
        is_right = predictions[i] == held_out.labels[i]
        title = str(predictions[i]) if is_right else f"{predictions[i]}, not {held_out.labels[i]}"
        axes.set_title(title, color="#444444" if is_right else "#c62828", fontsize=10, pad=2)
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Compares, learns, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a ResNet-18 in safetensors, by torchvision's names")
    parser.add_argument("--batch", type=int, default=8, help="images at once (8)")
    parser.add_argument("--size", type=int, default=224, help="pixels of an image's side (224)")
    parser.add_argument("--epochs", type=int, default=30, help="of the digits (30)")
    parser.add_argument("--types", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--weights", nargs="+", choices=["arrays", *KEPT], default=["arrays", *KEPT])
    args = parser.parse_args()
    params = load_params(args.checkpoint) if args.checkpoint else random_params(np.random.default_rng(0))
    for dtype in args.types:
        compare(params, dtype, (args.batch, args.size, args.size, 3), args.weights)

    train, held_out = load()
    learned, predictions = learn(train, held_out, args.epochs)
    print(f"held-out accuracy: {(predictions == held_out.labels).mean():.2%}")
    path = pathlib.Path(__file__).with_name("vision.png")
    draw(np.asarray(learned[0]), predictions, held_out, path)
    print(f"products that ran as jax_nano's kernels: {jax_nano.executed_kernels():,}\npicture: {path}")


if __name__ == "__main__":
    main()
