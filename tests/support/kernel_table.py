"""The table of kernels: types, targets, and ways for the operands to reach the microkernel.

A row makes plans of any size. Numerics, memory safety and assembly are tested row by row: what is added here brings its
tests with it.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import pytest
from products import Product, matrix

from jax_nano.ir.dot import Axis, Operand, UnsupportedDot
from jax_nano.ir.packed_weight import Panels
from jax_nano.machine import host
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.candidates import instructions_for, kernel_plans
from jax_nano.schedule.plan import LhsMode, Plan, RhsMode

TYPES = (
    ("f32", "f32", "f32"),
    ("f64", "f64", "f64"),
    ("bf16", "bf16", "f32"),
    ("bf16", "bf16", "bf16"),
    ("f16", "f16", "f16"),
    ("s8", "s8", "s32"),
    ("u8", "s8", "s32"),
    ("s8", "u8", "s32"),
    ("u8", "u8", "s32"),
    ("s8", "s8", "f32"),
    ("s4", "u8", "s16"),
    ("u4", "bf16", "f32"),
    ("f32", "u8", "bf16"),
    ("f16", "bf16", "f16"),
    ("f8e4m3fn", "f8e5m2", "bf16"),
)
TARGETS = tuple(isa.name for isa in host.machine().isas)


@dataclass(frozen=True)
class Kind:
    """How A and B lie in memory, and how the plan brings them to the microkernel."""

    name: str
    a: str  # what A is contiguous along: "rows", "columns", or neither ("apart")
    lhs: LhsMode
    b: str  # likewise; or "panels"
    rhs: RhsMode
    inner_product: bool = False

    def serves(self, instruction: DotInstruction, types: tuple[str, str, str]) -> bool:
        """Whether the instruction can have operands of these types so."""
        if self.b == "panels" and types[1] not in ("f64", "f32", "bf16", "f16"):
            return False
        lhs = self.lhs != "unpacked" or self.a == "rows" or instruction.vnni == 1
        rhs = (self.rhs != "unpacked" and not self.inner_product) or instruction.lhs_offset == 0
        return lhs and rhs


KINDS = (
    Kind("unpacked", "rows", "unpacked", "rows", "unpacked"),
    Kind("direct_from_columns", "columns", "unpacked", "rows", "unpacked"),
    Kind("direct_from_apart", "apart", "unpacked", "rows", "unpacked"),
    Kind("a_by_rows", "rows", "rows", "rows", "unpacked"),
    Kind("a_by_columns", "columns", "columns", "rows", "unpacked"),
    Kind("a_by_columns_from_rows", "rows", "columns", "rows", "per_task"),
    Kind("b_private", "rows", "unpacked", "rows", "per_task"),
    Kind("b_private_from_columns", "rows", "rows", "columns", "per_task"),
    Kind("b_private_from_apart", "apart", "columns", "apart", "per_task"),
    Kind("b_shared", "rows", "rows", "rows", "per_round"),
    Kind("b_shared_from_columns", "columns", "columns", "columns", "per_round"),
    Kind("b_shared_from_apart", "rows", "unpacked", "apart", "per_round"),
    Kind("b_panels", "rows", "unpacked", "panels", "panels"),
    Kind("b_panels_a_by_columns", "columns", "columns", "panels", "panels"),
    Kind("along_k", "rows", "unpacked", "columns", "unpacked", inner_product=True),
    Kind("along_k_b_turned", "rows", "unpacked", "rows", "per_task", inner_product=True),
    Kind("along_k_a_turned", "columns", "rows", "columns", "unpacked", inner_product=True),
)


@dataclass(frozen=True)
class Row:
    """One kernel: types, the instruction of a target that multiplies them, and a kind."""

    types: tuple[str, str, str]
    target: str
    instruction: DotInstruction
    kind: Kind

    def __str__(self):
        return "-".join((*self.types, self.target, self.instruction.name, self.kind.name))

    def product(self, m, n, k) -> Product:
        """C of m x n, as the sum of k products."""
        lhs, rhs, out = self.types
        b = self.panels(k, n) if self.kind.b == "panels" else matrix(k, n, self.kind.b, rhs)
        return Product(lhs=matrix(m, k, self.kind.a, lhs), rhs=b, out=out)

    def panels(self, k, n) -> Operand:
        """B in panels of two of the plan's register blocks."""
        group = self.instruction.vnni if self.instruction.rhs == self.types[1] else 1
        rows, width = max(2, -(-k // group) * group), 4 * self.instruction.shape[1]
        panels = Panels(matrices=1, rows=rows, columns=-(-n // width) * width, width=width, vnni=group)
        return Operand(shape=(k, n), strides=(1, rows), dtype=self.types[1], panels=panels)

    def plan(self, m, n, k, **changes) -> Plan:
        """A plan of this kind: one task, one block of k and small register blocks, but for the `changes`."""
        dot, kind, lanes = self.product(m, n, k).dot, self.kind, self.instruction.shape[1]
        fields: dict[str, Any] = {"mr": 3, "nr": 2 if kind.inner_product else 2 * lanes} | changes
        rows, columns = (-(-size // block) * block for size, block in ((m, fields["mr"]), (n, fields["nr"])))
        whole: dict[str, Any] = {
            "mc": fields.get("mt", rows),
            "mt": fields.get("mc", rows),
            "kc": k,
            "nc": columns,
            "nt": columns,
        }
        axes: dict[str, Any] = {
            "m": Axis(size=1, out=n), "n": Axis(size=1, rhs=1, out=1), "k": Axis(size=1, lhs=1, rhs=1),
        } | {name: axis for name in "mnk" for axis in getattr(dot, name)}  # fmt: skip
        return Plan(
            dot=dot, swapped=False, isa=self.target, instruction=self.instruction,
            lhs=kind.lhs, rhs=kind.rhs, inner_product=kind.inner_product, **axes, **(whole | fields),
        )  # fmt: skip

    @functools.cached_property
    def planned(self) -> dict[str, Any]:
        """The register block that the schedule gives large products of this row, or of the kind nearest to it."""
        machine, kind = host.machine(), self.kind
        few = self.instruction.shape[1]
        m, n = (few if kind.inner_product and where != "unpacked" else 512 for where in (kind.lhs, kind.rhs))
        plans = [
            plan
            for plan in kernel_plans(self.product(m, n, 512).dot, machine, machine.isa(self.target))
            if plan.instruction == self.instruction and plan.inner_product == kind.inner_product
        ]
        plan = min(plans, key=lambda plan: (plan.lhs != kind.lhs) + (plan.rhs != kind.rhs))
        return {"mr": plan.mr, "nr": plan.nr, "unroll": plan.unroll, "lhs_stationary": plan.lhs_stationary}


def rows() -> list[Row]:
    """All kernels that vectors of this machine run. Those of tiles are tested in tests/amx."""
    found = []
    for types in TYPES:
        for isa in host.machine().isas:
            dot = Row(types, isa.name, isa.dots[0], KINDS[0]).product(2, 2, 2).dot
            with contextlib.suppress(UnsupportedDot):
                for level, instruction in instructions_for(isa, dot):
                    if level is isa and not instruction.tiles:
                        found += [
                            Row(types, isa.name, instruction, kind) for kind in KINDS if kind.serves(instruction, types)
                        ]
    return found


ROWS = rows()


def every_row(function):
    """Runs a test for each row of the table."""
    return pytest.mark.parametrize("row", ROWS, ids=str)(function)
