"""The choice of panels for a weight that is packed once, for products of any number of rows."""

from __future__ import annotations

from jax_nano.ir.dot import Dot, Operand
from jax_nano.ir.packed_weight import Panels
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.cost import estimate

ROWS = 128  # of A, in the product that the instruction is chosen for
# How wide panels are, in registers, best first. On Zen 5, panels of four cost products of 1 or 128 rows up to 20 %.
REGISTERS = (2, 1)
PADDING = 1 / 16  # of N, that the best width may take


def panels_for(dtype: str, k: int, n: int, machine: Machine, isa: Isa) -> Panels:
    """The panels in which a K x N matrix serves products with others of its type.

    Rows are grouped for the instruction of the best kernel where that multiplies the matrix as it is. Panels are wide
    where that takes little padding.

    Raises:
      UnsupportedDot: the target has no instruction for this type.
    """
    instruction = instruction_for_weight(dtype, k, n, machine, isa)
    _, lanes, steps = instruction.shape
    vnni = instruction.vnni if instruction.rhs == dtype else 1
    # With one row, steps along K and along N could not be told apart.
    rows = max(2, -(-k // steps) * steps if vnni > 1 else k)
    width = panel_width(n, lanes)
    return Panels(matrices=1, rows=rows, columns=-(-n // width) * width, width=width, vnni=vnni)


def instruction_for_weight(dtype: str, k: int, n: int, machine: Machine, isa: Isa) -> DotInstruction:
    """The instruction of the best kernel that packs B, for ROWS rows of A.

    Raises:
      UnsupportedDot: the target has no instruction for this type.
    """
    lhs, rhs = Operand.row_major((ROWS, k), dtype), Operand.row_major((k, max(n, 2)), dtype)
    dot = Dot.of(lhs, rhs, (((1,), (0,)), ((), ())), dtype)
    plans = [plan for plan in kernel_plans(dot, machine, isa) if plan.packs_rhs]
    return min(plans, key=lambda plan: estimate.seconds(plan, machine, 1).total).instruction


def panel_width(n: int, lanes: int) -> int:
    """The best width that takes little padding of n columns, or the one that takes the least."""
    widths = [lanes * registers for registers in REGISTERS]
    least = min(widths, key=lambda width: (-n % width, -width))
    return next((width for width in widths if -n % width <= n * PADDING), least)
