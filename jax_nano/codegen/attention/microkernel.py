"""The microkernel of all products of attention and of its gradients."""

from __future__ import annotations

from jax_nano.codegen.microkernel import Microkernel
from jax_nano.codegen.nanokernel import Nanokernel, TileNanokernel
from jax_nano.codegen.tile_microkernel import TileMicrokernel
from jax_nano.schedule.attention.gradient import GradientPlan
from jax_nano.schedule.attention.plan import AttentionPlan


def microkernel_for(plan: AttentionPlan | GradientPlan, *, lhs_is_packed: bool) -> Microkernel:
    """A microkernel whose B is packed; tiles want a packed A as well."""
    if plan.instruction.tiles:
        tiles = TileNanokernel(instruction=plan.instruction, lhs_is_packed=True, rhs_is_packed=True)
        return TileMicrokernel(nano=tiles, unroll=1)
    nano = Nanokernel(instruction=plan.instruction, lhs_is_packed=lhs_is_packed, rhs_is_packed=True,
                      lhs_stationary=plan.mr < plan.nr // plan.lanes)  # fmt: skip
    return Microkernel(nano=nano, unroll=plan.unroll)
