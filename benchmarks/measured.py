"""Products whose candidate plans were measured, as files: benchmarks/data/<processor>.csv.

A file begins with a comment, a line of JSON about the machine. Its rows are plans, those of a product one after the
other: the product, the fields of the plan that do not follow from it, and the seconds that the plan took, with operands
that stay in the caches from call to call and, where that was measured, with others each time. Several numbers are of
several sweeps, in order.
"""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from jax_nano.ir.dot import Dot, Operand
from jax_nano.machine import x86
from jax_nano.machine.isa import Cache, DotInstruction, Machine
from jax_nano.schedule.loop_nest import LoopNest
from jax_nano.schedule.plan import Plan

DATA = pathlib.Path(__file__).with_name("data")
PRODUCT = ("types", "kind", "m", "n", "k", "threads")
TIMES = ("resident", "cold")
# Of a plan, all that its product and instruction set do not say.
ELSEWHERE = ("dot", "instruction", "why", "predicted_seconds", *(field.name for field in fields(LoopNest)))
CONVOLUTIONS = ("channelwise", "placewise")  # what only they set
PLAN = tuple(field.name for field in fields(Plan) if field.name not in ELSEWHERE + CONVOLUTIONS)


@dataclass(frozen=True)
class Product:
    """C = A B of row-major matrices; of "nt", B is N x K, and of "tn", A is K x M."""

    types: str  # as in "bf16>f32"
    kind: str
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.types} {self.kind} {self.m}x{self.n}x{self.k}"

    @property
    def dot(self) -> Dot:
        """The product as it is composed. Operands of two types are written as in "u8xs8>s32"."""
        operands, out = self.types.split(">")
        lhs_type, rhs_type = operands.split("x") if "x" in operands else (operands, operands)
        lhs = Operand.row_major((self.k, self.m) if self.kind == "tn" else (self.m, self.k), lhs_type)
        rhs = Operand.row_major((self.n, self.k) if self.kind == "nt" else (self.k, self.n), rhs_type)
        contract = ((0 if self.kind == "tn" else 1,), (1 if self.kind == "nt" else 0,))
        return Dot.of(lhs, rhs, (contract, ((), ())), out)


class Candidate(NamedTuple):
    """A plan, and the seconds it took: a number for each sweep."""

    plan: Plan
    resident: tuple[float, ...]
    cold: tuple[float, ...] = ()


class Measured(NamedTuple):
    """The candidates of one product, on a machine with so many threads."""

    product: Product
    threads: int
    candidates: tuple[Candidate, ...]


class Recording(NamedTuple):
    """What was measured on one machine."""

    machine: Machine
    products: tuple[Measured, ...]


def describe(machine: Machine, source: str) -> dict[str, Any]:
    """The first line of a file: what the cost model cannot take from the tables of processors."""
    caches = [{field.name: getattr(cache, field.name) for field in fields(Cache)} for cache in machine.caches]
    return {"processor": machine.name, "caches": caches, "source": source}


def write(path: pathlib.Path, about: dict[str, Any], products: Iterable[Measured]) -> None:
    """Writes a file, a product at a time: of one that is interrupted, those that are done remain."""
    with path.open("w", newline="") as file:
        file.write(f"# {json.dumps(about)}\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((*PRODUCT, "instruction", *PLAN, *TIMES))
        for product, threads, candidates in products:
            for plan, *times in candidates:
                of_product = (*(getattr(product, field.name) for field in fields(Product)), threads)
                of_plan = (plan.instruction.name, *(text(getattr(plan, name)) for name in PLAN))
                rows.writerow((*of_product, *of_plan, *(" ".join(f"{t:.4g}" for t in sweeps) for sweeps in times)))
            file.flush()


def text(value: Any) -> str:
    """A field of a plan as it is written: numbers, names, and 1 or 0 for what is so or not."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def read(path: pathlib.Path) -> Recording:
    """What a file says.

    Raises:
      ValueError: a row is no plan of its product.
    """
    with path.open(newline="") as file:
        about = json.loads(file.readline().lstrip("# "))
        rows = list(csv.DictReader(file))
    (named,) = (machine for machine in x86.MACHINES if machine.name == about["processor"])
    machine = replace(named, caches=tuple(Cache(**cache) for cache in about["caches"]))
    return Recording(machine, tuple(measured(machine, list(group)) for _, group in groups(rows)))


def groups(rows: list[dict[str, str]]) -> Iterator[tuple[tuple[str, ...], Iterator[dict[str, str]]]]:
    """The rows of each product."""
    return itertools.groupby(rows, key=lambda row: tuple(row[name] for name in PRODUCT))


def measured(machine: Machine, rows: list[dict[str, str]]) -> Measured:
    """One product, of its rows."""
    types, kind, *numbers = (rows[0][name] for name in PRODUCT)
    m, n, k, threads = map(int, numbers)
    product = Product(types, kind, m, n, k)
    dot = product.dot
    return Measured(product, threads, tuple(candidate(dot, machine, row) for row in rows))


def candidate(dot: Dot, machine: Machine, row: dict[str, str]) -> Candidate:
    """One plan, of its row."""
    nest = LoopNest.of(dot)
    values = {name: parse(Plan.__dataclass_fields__[name].type, row[name]) for name in PLAN}
    loops = {field.name: getattr(nest, field.name) for field in fields(nest)}
    plan = Plan(**loops, **values, instruction=instruction(machine, nest, row))
    return Candidate(plan, *(tuple(map(float, row[name].split())) for name in TIMES))


def parse(kind: Any, value: str) -> Any:
    """A field of a plan, of what `text` wrote."""
    return {"int": int, "bool": lambda word: word == "1"}.get(kind, str)(value)


def instruction(machine: Machine, nest: LoopNest, row: dict[str, str]) -> DotInstruction:
    """The instruction of that name for a product's types; of tiles, in the shape that they have there."""
    named = [each for each in machine.isa(row["isa"]).dots if each.name == row["instruction"]]
    if not named:
        product = Product(row["types"], row["kind"], int(row["m"]), int(row["n"]), int(row["k"]))
        raise ValueError(f"{product}: {row['isa']} has no instruction {row['instruction']}")
    exact = [each for each in named if (each.lhs, each.rhs) == (nest.dot.lhs, nest.dot.rhs)]
    chosen = (exact or named)[0]
    return chosen.fitted(nest.m.size, nest.k.size) if chosen.tiles else chosen
