"""The plans of eleven products on every processor, as they are: nothing about the choice changes unseen.

`--update-golden` writes them anew; the difference belongs into the commit, with the reason.
"""

import dataclasses
import pathlib

import pytest
from products import Product, matrix

from jax_nano.ir.dot import Axis, Dot, Operand
from jax_nano.machine import host, x86
from jax_nano.schedule.choose import choose

GOLDEN = pathlib.Path(__file__).parent / "plans"
THREADS = 8


def product(types, sizes, a="rows", b="rows"):
    (lhs, rhs, out), (m, n, k) = types, sizes
    return Product(lhs=matrix(m, k, a, lhs), rhs=matrix(k, n, b, rhs), out=out).dot


def attention_scores(dtype):
    """96 heads: queries times keys, both 512 x 64."""
    queries = Operand.row_major((96, 512, 64), dtype)
    return Dot.of(queries, queries, (((2,), (2,)), ((0,), (0,))), dtype)


PRODUCTS = {
    "f32 64 cubed": product(("f32",) * 3, (64, 64, 64)),
    "f32 1000 cubed": product(("f32",) * 3, (1000, 1000, 1000)),
    "f32 2048 cubed, A transposed": product(("f32",) * 3, (2048, 2048, 2048), a="columns"),
    "f32 3 x 5, a long sum": product(("f32",) * 3, (3, 5, 100_000)),
    "f64 100000 x 7 x 3": product(("f64",) * 3, (100_000, 7, 3)),
    "bf16 1024 cubed": product(("bf16",) * 3, (1024, 1024, 1024)),
    "bf16 to f32 128 x 50257 x 768": product(("bf16", "bf16", "f32"), (128, 50257, 768)),
    "f16 4096 x 16 x 4096, A transposed": product(("f16",) * 3, (4096, 16, 4096), a="columns"),
    "s8 16 x 4096 x 4096, B transposed": product(("s8", "s8", "s32"), (16, 4096, 4096), b="columns"),
    "bf16 by 4 bits, one row": product(("bf16", "s4x8", "bf16"), (1, 3072, 768)),
    "bf16 attention scores": attention_scores("bf16"),
}


def text(value):
    """A field of a plan on one line: of an instruction its name, of an axis its size and strides."""
    match value:
        case Axis():
            return f"{value.size} by {'/'.join(map(str, value.strides()))}"
        case tuple():
            return f"({', '.join(map(text, value))})"
    return str(getattr(value, "name", value))


def described(plan):
    """Every field but the product, which the heading says, and the predicted times, which are the model's."""
    fields = (
        f.name for f in dataclasses.fields(plan) if f.compare and f.name not in ("dot", "channelwise", "placewise")
    )
    lines = [f"  {name} = {text(getattr(plan, name))}" for name in fields]
    return "\n".join([*lines, f"  tasks = {plan.tasks}", f"  scratch = {plan.shared_bytes}, {plan.local_bytes}"])


@pytest.mark.parametrize("machine", x86.MACHINES, ids=lambda machine: machine.name)
def test_plans_are_as_before(machine, request):
    machine = dataclasses.replace(host.known(machine.name), threads=THREADS)
    plans = (f"{name}\n{described(choose(dot, machine, machine.isas[0]))}" for name, dot in PRODUCTS.items())
    chosen = "\n\n".join(plans) + "\n"
    file = GOLDEN / f"{machine.name}.txt"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(chosen)
    assert chosen == file.read_text()
