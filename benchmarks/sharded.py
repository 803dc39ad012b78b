"""Prints how many times as fast as plain jit sharded operations are on two devices of one process.

usage: python -m benchmarks.sharded [--turns 6] [--only OPERATIONS ...]

Both programs take turns in one run. Devices share the processor's cores.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_nano
from benchmarks.tables import call, normal, row
from benchmarks.timing import best_of

DEVICES = 2
TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
SIZES = ((256, 256, 256), (1024, 1024, 1024), (8, 2048, 2048))  # M, N, K


class Case(NamedTuple):
    """One row of the table: a function of JAX, its namesake, operands with their shardings, and the result's."""

    name: str
    plain: Callable[..., Any]
    ours: Callable[..., Any]
    operands: Sequence[Any]
    specs: Sequence[P]
    out: P


PRODUCTS = {
    "rows": (P("x"), P(), P("x")),
    "columns": (P(), P(None, "x"), P(None, "x")),
    "sum": (P(None, "x"), P("x"), P()),
    "sum, in parts": (P(None, "x"), P("x"), P("x")),
    "weight gathered": (P("x"), P("x"), P("x")),
}


def products(dtype: str) -> list[Case]:
    """Matrix products."""
    return [
        Case(
            f"{m}x{n}x{k} {dtype}, {name}", jnp.matmul, jax_nano.matmul,
            (normal((m, k), TYPES[dtype]), normal((k, n), TYPES[dtype], 1)), specs, out,
        )
        for m, n, k in SIZES for name, (*specs, out) in PRODUCTS.items()
    ]  # fmt: skip


def layers() -> list[Case]:
    """A feed-forward layer, its columns and then its sum over devices; and its gradient."""

    def layer(x: Any, up: Any, down: Any) -> Any:
        return jax.nn.gelu(x @ up) @ down

    def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda x, up, down: (f(x, up, down) ** 2).sum(), (1, 2))

    operands = normal((512, 512), jnp.float32), normal((512, 2048), jnp.float32, 1), normal((2048, 512), jnp.float32, 2)
    specs = {
        "tensor parallel": (P(), P(None, "x"), P("x")),
        "data parallel": (P("x"), P(), P()),
    }
    return [
        case
        for name, kinds in specs.items()
        for case in (
            Case(f"layer, {name}", layer, jax_nano.accelerate(layer), operands, kinds, kinds[0]),
            Case(f"gradient, {name}", gradient(layer), jax_nano.accelerate(gradient(layer)), operands, kinds, P()),
        )
    ]


def attention() -> list[Case]:
    """Attention over batch and heads."""
    operands = [normal((4, 256, 8, 64), jnp.float32, seed) for seed in range(3)]
    plain, ours = jax.nn.dot_product_attention, jax_nano.dot_product_attention
    return [
        Case(f"attention, {name}", plain, ours, operands, (spec,) * 3, spec)
        for name, spec in {"batch": P("x"), "heads": P(None, None, "x")}.items()
    ]


def convolutions() -> list[Case]:
    """Convolutions over batch, features and channels."""
    operands = normal((4, 28, 28, 128), jnp.float32), normal((3, 3, 128, 128), jnp.float32, 1)
    how: Any = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    plain, ours = (functools.partial(f, **how) for f in (lax.conv_general_dilated, jax_nano.conv_general_dilated))
    channels = P(None, None, None, "x")
    specs = {
        "batch": ((P("x"), P()), P("x")), "features": ((P(), channels), channels),
        "channels": ((channels, P(None, None, "x")), P()),
    }  # fmt: skip
    return [Case(f"convolution, {name}", plain, ours, operands, kinds, out) for name, (kinds, out) in specs.items()]


def grouped() -> list[Case]:
    """Grouped products over rows, experts, columns and sums."""
    operands = normal((512, 512), jnp.float32), normal((8, 512, 512), jnp.float32, 1), jnp.full(8, 64, jnp.int32)
    specs = {
        "rows": (P("x"), P(), P()), "experts": (P(), P("x"), P()), "columns": (P(), P(None, None, "x"), P()),
        "sum": (P(None, "x"), P(None, "x"), P()),
    }  # fmt: skip
    outs = {"rows": P("x"), "columns": P(None, "x")}
    return [
        Case(f"grouped, {name}", lax.ragged_dot, jax_nano.ragged_dot, operands, kinds, outs.get(name, P()))
        for name, kinds in specs.items()
    ]


OPERATIONS: dict[str, Callable[[], list[Case]]] = {
    "f32": lambda: products("f32"), "bf16": lambda: products("bf16"), "layers": layers, "attention": attention,
    "convolutions": convolutions, "grouped": grouped,
}  # fmt: skip


def measured(case: Case, turns: int) -> tuple[float, float]:
    """The seconds of plain jit and of kernels."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    args = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(case.operands, case.specs, strict=True)]
    result = NamedSharding(mesh, case.out)

    def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
        shape = jax.eval_shape(f, *args)
        return jax.jit(f, out_shardings=jax.tree.map(lambda _: result, shape))

    plain, ours = best_of([call(compiled(f), args) for f in (case.plain, case.ours)], turns)
    return plain, ours


def main() -> None:
    """Prints the table of the operations asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=[*OPERATIONS], metavar="OPERATIONS")
    parser.add_argument("--turns", type=int, default=6)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(row("", "plain jit, us", "kernels, us", "times as fast"))
    print(row("---", "---:", "---:", "---:"))
    for name in args.only:
        for case in OPERATIONS[name]():
            plain, ours = measured(case, args.turns)
            print(row(case.name, f"{plain * 1e6:.0f}", f"{ours * 1e6:.0f}", plain / ours), flush=True)


if __name__ == "__main__":
    main()
