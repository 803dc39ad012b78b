"""The grouped product of a region: what a group with all rows would be, and what the groups have each."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import Var

from jax_nano.ir.axes import Axis
from jax_nano.ir.dot import Dot
from jax_nano.ir.grouped import Grouped
from jax_nano.jaxpr.grouped.chosen_rows import SummedRows
from jax_nano.jaxpr.grouped.row_gathers import row_gather
from jax_nano.jaxpr.grouped.row_scatters import ScatteredRows
from jax_nano.jaxpr.operands import StridedArray, element_type
from jax_nano.jaxpr.strided_views import NoView


def with_groups(
    dot: Dot, groups: Sequence[Axis], sizes: Var, lhs: StridedArray, scatter: ScatteredRows | SummedRows | None
) -> Grouped:
    """The grouped product whose groups have this product each.

    Args:
      dot: the product of a group that has all rows.
      groups: the axis of the groups, if there are several.
      sizes: how many rows they have.
      lhs: A, whose rows may be gathered.
      scatter: where rows of C are added, if they are.

    Raises:
      UnsupportedDot: the groups share out rows that are more than one loop, or no kernel finds these rows.
      NoView: rows are worked on that are not contiguous.
    """
    if dot.prologue and not (len(dot.k) == 1 and dot.k[0].lhs == 1):
        raise NoView("rows of groups are worked on as they are packed, where each is contiguous")
    nothing = Axis(size=1, extras=(0,) * len(dot.extras))
    (group,) = groups or [nothing]
    return Grouped(
        dot=dot, ragged="m", groups=group.size, group=group, batch=nothing, sizes=element_type(sizes),
        gather=row_gather(lhs), scatter=scatter and scatter.described(group.size),
    )  # fmt: skip
