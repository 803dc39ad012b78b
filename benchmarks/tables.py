"""Prints the tables of docs/performance.md that `make bench` does not.

What is compared takes turns in one run. Ratios are times as fast.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import jax_nano
from benchmarks import layers, report
from benchmarks.timing import best_of

TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
LAYERS, WIDTH, VOCABULARY = 12, 768, 50257  # of GPT-2's smallest shape

Function = Callable[..., Any]


def call(function: Function, operands: Sequence[Any]) -> Callable[[], object]:
    """Calls the function, jitted, and waits for its result."""
    jitted = jax.jit(function)
    return lambda: jax.block_until_ready(jitted(*operands))


def row(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(f'{cell:.2f}' if isinstance(cell, float) else str(cell) for cell in cells)} |"


def speedups(functions: Sequence[Function], arguments: Sequence[Sequence[Any]], turns: int) -> list[float]:
    """How many times as fast as the first function each other one is, on its own arguments."""
    calls = [call(function, operands) for function, operands in zip(functions, arguments, strict=True)]
    first, *others = best_of(calls, turns)
    return [first / seconds for seconds in others]


def normal(shape: Sequence[int], dtype: Any, seed: int = 0) -> Array:
    """Normal numbers."""
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def work_on_a(turns: int) -> None:
    """Work in front of a product, as a prologue and as a pass of XLA."""

    def scaled(x: Array, scales: Array) -> Array:
        return x * scales

    def normalized(x: Array, _: Array) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        return (centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)

    def softmax(x: Array, _: Array) -> Array:
        return jax.nn.softmax(x.astype(jnp.float32)).astype(x.dtype)

    cases = (
        ("`(x * row) @ w`", scaled, 1, (128, 768, 768)),
        ("`(x * row) @ w`", scaled, 1, (2048, 256, 256)),
        ("`normalized(x) @ w`", normalized, 1, (128, 768, 768)),
        ("`normalized(x) @ w`", normalized, 1, (2048, 256, 256)),
        ("`softmax(s) @ v`", softmax, 12, (128, 128, 64)),
        ("`softmax(s) @ v`", softmax, 24, (64, 64, 64)),
    )
    print("\n| program | size, M x K x N | f32 | bf16 |\n|---|---|---|---|")
    for name, before, batch, (m, k, n) in cases:
        found = []
        for dtype in TYPES.values():
            outer = (batch,) if batch > 1 else ()
            arrays = normal((*outer, m, k), dtype), normal((k,), dtype, 1), normal((*outer, k, n), dtype, 2)

            def fused(x: Array, scales: Array, w: Array, before: Function = before) -> Array:
                return before(x, scales) @ w

            def apart(x: Array, scales: Array, w: Array, before: Function = before) -> Array:
                return lax.optimization_barrier(before(x, scales)) @ w

            found += speedups([jax_nano.accelerate(apart), jax_nano.accelerate(fused)], [arrays] * 2, turns)
        size = f"{m} x {k} x {n}"
        print(row(name, f"{batch} x ({size})" if batch > 1 else size, *found))


def packed_weights(turns: int) -> None:
    """Products with a packed weight, beside those with the weight as it is."""
    rows = (1, 8, 32, 128)
    print(f"\n{row('w, K x N', 'type', *(f'{m} row' if m == 1 else f'{m} rows' for m in rows))}")
    print(f"|---|---|{'---|' * len(rows)}")
    for name, dtype in TYPES.items():
        for k, n in ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH), (WIDTH, VOCABULARY)):
            w = normal((k, n), dtype, 1)
            weights = w, jax_nano.pack(w)
            found = []
            for m in rows:
                x = normal((m, k), dtype)
                found += speedups([jax_nano.matmul] * 2, [(x, weight) for weight in weights], turns)
            print(row(f"{k} x {n}", name, *found))


def quantized_weights(turns: int) -> None:
    """All products of a decoder's step, one after the other, with quantized weights beside those of bf16."""
    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)] * LAYERS
    weights = [normal(shape, jnp.bfloat16, seed) for seed, shape in enumerate([*shapes, (WIDTH, VOCABULARY)])]
    forms: dict[str, dict[str, Any]] = {
        "8 bits": {"bits": 8},
        "4 bits": {"bits": 4},
        "4 bits by groups of 32": {"bits": 4, "group": 32},
        "8 bits, activations too": {"bits": 8, "activations": "int8"},
    }

    def products(x: dict[int, Array], weights: Sequence[Any]) -> Array:
        total = jnp.zeros((), jnp.float32)
        for w in weights:  # each waits for the one before, as layers do
            k = w.shape[0]
            y = jax_nano.matmul(x[k] + total.astype(jnp.bfloat16), w)
            total = 1e-6 * y[0, 0].astype(jnp.float32)
        return total

    made = [weights, *([jax_nano.quantize(w, **form) for w in weights] for form in forms.values())]
    print(f"\n{row('rows', *forms)}\n|---|{'---|' * len(forms)}")
    for m in (1, 128):
        x = {k: normal((m, k), jnp.bfloat16, k) for k in (WIDTH, 4 * WIDTH)}
        found = speedups([products] * len(made), [(x, weights) for weights in made], turns)
        print(row(m, *found))


def retained_memory(turns: int) -> None:
    """Milliseconds of calls with 100 MB results, with memory that stays and without, each in a process of its own."""
    print("\n| memory stays | x + 1 | attention's scores, XLA | jax_nano |\n|---|---|---|---|")
    for stays in ("no", "yes"):
        subprocess.run([sys.executable, "-m", "benchmarks.tables", "--stays", stays, "--turns", str(turns)], check=True)


def large_results(stays: str, turns: int) -> None:
    """A row of retained_memory's table."""
    if stays == "yes":
        jax_nano.retain_memory(1 << 30)
    x, q = jnp.ones(100 * 2**20 // 4, jnp.float32), normal((96, 512, 64), jnp.float32)
    calls = [
        call(lambda x: x + 1, [x]),
        call(lambda q: jnp.einsum("bqd,bkd->bqk", q, q), [q]),
        call(lambda q: jax_nano.einsum("bqd,bkd->bqk", q, q), [q]),
    ]
    print(row(stays, *(1e3 * seconds for seconds in best_of(calls, turns))))


TABLES = {f.__name__: f for f in (work_on_a, packed_weights, quantized_weights, retained_memory)} | layers.TABLES


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--turns", type=int, default=7, help="of each function; the best one counts")
    parser.add_argument("--stays", choices=("no", "yes"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stays:
        large_results(arguments.stays, arguments.turns)
        return
    report.print_circumstances(report.circumstances())
    for name in arguments.only or TABLES:
        TABLES[name](arguments.turns)


if __name__ == "__main__":
    main()
