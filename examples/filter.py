"""Follows a turning aircraft through noise with a Kalman filter, beside plain XLA and a loop of NumPy in float64.

States are positions and velocities in a plane, which turn by a known rate; positions are measured. The filter is
lax.scan over measurements, whose step has half a dozen products of matrices of four rows: Kalman, "A New Approach to
Linear Filtering and Prediction Problems", Journal of Basic Engineering 82, 1960. The covariance of a measurement is
inverted by its formula for two rows. Under jax_nano.accelerate the whole scan is one kernel, and so is a filter of many
aircraft at once, by jax.vmap. Draws the track to filter.png.

usage: python examples/filter.py [--steps 2000] [--aircraft 64]
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from matplotlib.figure import Figure

import jax_nano

STEP, TURN = 0.1, 0.02  # seconds, and radians in each
NOISE, UNREST = 1.5, 0.05  # of positions, in meters, and of velocities in each step
REPEATS = 5


class Model(NamedTuple):
    """Matrices of a linear model."""

    move: Any  # of a state, (4, 4)
    see: Any  # of a state what is measured, (2, 4)
    unrest: Any  # covariance of what a step adds, (4, 4)
    noise: Any  # of a measurement, (2, 2)


def turning() -> Model:
    """Positions move by velocities, which turn."""
    c, s = np.cos(TURN), np.sin(TURN)
    turn = np.array([[c, -s], [s, c]])
    move = np.block([[np.eye(2), STEP * turn], [np.zeros((2, 2)), turn]])
    unrest = UNREST**2 * np.diag([0.0, 0.0, 1.0, 1.0])
    return Model(move, np.eye(2, 4), unrest, NOISE**2 * np.eye(2))


def track(model: Model, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True states (steps, 4) and measurements (steps, 2)."""
    rng, state, states = np.random.default_rng(seed), np.array([0.0, 0.0, 20.0, 0.0]), []
    for _ in range(steps):
        state = model.move @ state + UNREST * np.array([0, 0, *rng.standard_normal(2)])
        states.append(state)
    return np.stack(states), np.stack(states)[:, :2] + NOISE * rng.standard_normal((steps, 2))


def kalman(model: Model, seen: Array) -> Array:
    """The means (steps, 4) of states given all measurements so far."""

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], Array]:
        mean, covariance = carry
        mean = model.move @ mean
        covariance = model.move @ covariance @ model.move.T + model.unrest
        s = model.see @ covariance @ model.see.T + model.noise
        swapped = jnp.concatenate([s[1:, ::-1], s[:1, ::-1]]) * jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        inverse = swapped / (s[0, 0] * s[1, 1] - s[0, 1] * s[1, 0])
        gain = covariance @ model.see.T @ inverse
        mean = mean + gain @ (y - model.see @ mean)
        covariance = covariance - gain @ model.see @ covariance
        return (mean, covariance), mean

    start = jnp.zeros(4), 100.0 * jnp.eye(4)
    return lax.scan(step, start, seen)[1]


def exact(model: Model, seen: np.ndarray) -> np.ndarray:
    """The same by NumPy, in float64."""
    mean, covariance, means = np.zeros(4), 100.0 * np.eye(4), []
    for y in seen:
        mean, covariance = model.move @ mean, model.move @ covariance @ model.move.T + model.unrest
        gain = covariance @ model.see.T @ np.linalg.inv(model.see @ covariance @ model.see.T + model.noise)
        mean = mean + gain @ (y - model.see @ mean)
        covariance = covariance - gain @ model.see @ covariance
        means.append(mean)
    return np.stack(means)


def timed(f: Callable[..., Array], *arrays: Any) -> tuple[np.ndarray, float]:
    """What a function gives, and the least seconds that it took."""
    found, best = np.asarray(f(*arrays)), float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(f(*arrays))
        best = min(best, time.perf_counter() - start)
    return found, best


def draw(states: np.ndarray, seen: np.ndarray, means: np.ndarray, path: pathlib.Path) -> None:
    """Draws a track, its measurements and what the filter makes of them."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*seen.T, ".", markersize=2, color="silver", label="measured")
    axes.plot(*states[:, :2].T, label="true")
    axes.plot(*means[:, :2].T, label="filtered")
    axes.set(xlabel="m", ylabel="m", aspect="equal")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Filters one track and many, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--aircraft", type=int, default=64)
    args = parser.parse_args()
    model = turning()
    states, seen = track(model, args.steps, 0)
    many = np.stack([track(model, args.steps, seed)[1] for seed in range(args.aircraft)]).astype(np.float32)
    means = exact(model, seen)
    small = Model(*(jnp.asarray(x, jnp.float32) for x in model))
    programs = {
        "one track": (kalman, jnp.asarray(seen, jnp.float32)),
        f"{args.aircraft} tracks": (jax.vmap(kalman, (None, 0)), jnp.asarray(many)),
    }
    for what, (f, y) in programs.items():
        for name, wrap in (("jax_nano", jax_nano.accelerate), ("XLA", lambda f: f)):
            found, seconds = timed(jax.jit(wrap(f)), small, y)
            first = found if found.ndim == means.ndim else found[0]
            error = np.abs(first - means)[:, :2].max()
            print(f"{what:12}{name:9}{1e3 * seconds:9.3f} ms; at most {error:.1e} m from NumPy in float64")
    (report, *_) = jax_nano.inspect(kalman, small, programs["one track"][1])
    print(f"\n{report}\n")
    path = pathlib.Path(__file__).with_name("filter.png")
    draw(states, seen, np.asarray(jax.jit(jax_nano.accelerate(kalman))(small, jnp.asarray(seen, jnp.float32))), path)
    rms = [np.sqrt(((x[:, :2] - states[:, :2]) ** 2).sum(1).mean()) for x in (seen, means)]
    print(f"measured {rms[0]:.2f} m from the truth, filtered {rms[1]:.2f} m; drawn to {path.name}")


if __name__ == "__main__":
    main()
