"""Kernels in programs that XLA partitions: a call that becomes, on every device, a kernel of its shards.

Where XLA spreads a program over devices, what is lowered has the sizes of whole arrays, and how they are sharded is
known when XLA compiles. So a call of PARTITIONED stands there, with a sharding rule for Shardy. XLA's partitioner asks
`_partition` what it becomes: a program of one device's shards, lowered like any other, in which products have kernels
for the shards' shapes, and sums over several devices are all-reduced.

The call names what it stands for by a digest, under which this process keeps it. The digest covers all that kernels
depend on, so that it stands in the keys of JAX's persistent compilation cache for what XLA does not see yet.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import jax
from jax.core import ShapedArray
from jax.extend.backend import get_backend
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding

from jax_nano import config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.jaxpr import private
from jax_nano.lowering.cheapest_sharding import cheapest
from jax_nano.lowering.device_mesh import Spread, mesh_of
from jax_nano.lowering.partial_sums import Sums, part_of, without_padding
from jax_nano.lowering.partial_sums import sum_over as sum_over
from jax_nano.lowering.sharding import GROUPED, Axes, ShardingRule, assign, fitting, sharded, spec_by
from jax_nano.runtime import keys
from jax_nano.runtime.kernel import FORMAT
from jax_nano.runtime.kernels import TURNED_OFF, Place
from jax_nano.runtime.report import Report, reports, tell
from jax_nano.runtime.threads import inner_limit, program_limit
from jax_nano.runtime.toolchain import toolchain

PARTITIONED = "jax_nano_partitioned"  # the target of the call
THIS_PROCESS = secrets.token_hex()  # stands for sources that have changed since, which have no digest
Body = Callable[..., Sequence[jax.Array]]


@dataclass(frozen=True, eq=False)
class Shards:
    """What a call computes of shards.

    Attributes:
      rule: how it may be sharded.
      body: computes the results of one device's shards; `sums` are the axes that each sum is spread over, and, where
        the rule has such factors, `places` those of factors of which shards know which they are.
      text: tells the body from all others.
      scatters: nothing follows the sum in `body`, so that devices may keep just their parts of its result.
      is_cheapest: axes at odds go where devices exchange least, rather than where XLA's products have them.
    """

    rule: ShardingRule
    body: Body
    text: str
    scatters: bool = False
    is_cheapest: bool = False


@dataclass(frozen=True, eq=False)
class Partitioned:
    """What a call stands for.

    Attributes:
      shards: what it computes.
      spread: the devices that compute it.
      threads: of each kernel; 0: any.
      x64: whether types of 64 bits are known.
      told: what became of it when XLA last compiled it.
    """

    shards: Shards
    spread: Spread
    threads: int
    x64: bool
    told: list[Report]

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A compiled program that is written to disk asks no more, and takes nothing of this along."""
        return _nothing, ()

    @contextlib.contextmanager
    def settings(self):
        """Those that the call was lowered under."""
        with jax.enable_x64(self.x64), inner_limit(self.threads):
            yield


def _nothing() -> None:
    """Stands for what a program from disk does without."""


_partitioned: WeakValueDictionary[str, Partitioned] = WeakValueDictionary()  # by digest; programs keep them


def devices_to_partition(ctx: mlir.LoweringRuleContext) -> int:
    """Over how many devices XLA partitions what stands here; 1 inside shard_map over all axes, and on one device.

    Raises:
      UnsupportedDot: it does so in a way that kernels cannot follow, or there are no kernels.
      ValueError: no machine has the target asked for.
    """
    spread = Spread.of(ctx.module_context.axis_context)
    if spread.count == 1:
        return 1
    if not config.enabled():
        raise UnsupportedDot(TURNED_OFF)
    if problem := _unfit(ctx, spread):
        raise UnsupportedDot(f"XLA partitions this program over {spread.count} devices, and {problem}")
    Place.of()  # shards are of no use where there is no target
    return spread.count


def check_partitioning(ctx: mlir.LoweringRuleContext) -> None:
    """Checks that XLA does not partition what stands here: for what has no rule of how it may be sharded.

    Raises:
      UnsupportedDot: it does.
    """
    if (devices := Spread.of(ctx.module_context.axis_context).count) > 1:
        raise UnsupportedDot(
            f"XLA partitions this program over {devices} devices, and this has no rule of how it may be sharded; under "
            "shard_map every device runs a kernel on its shard"
        )


def _unfit(ctx: mlir.LoweringRuleContext, spread: Spread) -> str:
    """Why there can be no kernels on shards; empty where there can."""
    if ctx.module_context.lowering_parameters.for_export:
        return "an exported program cannot ask jax_nano how"
    if not private.is_shardy_used():
        return "without Shardy, which takes jax_nano's rules: set jax_use_shardy_partitioner"
    if spread.axes > 1:  # XLA does not say in which order these have the devices
        return f"they are {spread.axes} automatic axes beside manual ones; with one, every device runs a kernel"
    return ""


def partitioned_call(
    ctx: mlir.LoweringRuleContext, arrays: Sequence[mlir.ir.Value], shards: Shards, report: Report
) -> Sequence[mlir.ir.Value]:
    """Calls what XLA's partitioner is to replace; gives what lowering rules give.

    Args:
      ctx: whose `avals_out` are the results.
      arrays: the operands.
      shards: what it computes.
      report: of the whole, before its shards are known.
    """
    spread = Spread.of(ctx.module_context.axis_context)
    digest = _digest(shards, arrays, spread)
    call = _partitioned.get(digest) or Partitioned(shards, spread, program_limit(), jax.config.jax_enable_x64, [])
    _partitioned[digest] = call
    ctx.module_context.add_keepalive(call)
    tell(replace(report, devices=spread.devices, shards=call.told))
    return private.partitioned_call(ctx, PARTITIONED, arrays, digest, shards.rule.for_shardy())


def _digest(shards: Shards, arrays: Sequence[mlir.ir.Value], spread: Spread) -> str:
    """Names a call, by all that its kernels depend on."""
    place = Place.of()
    values = (shards.rule, [str(array.type) for array in arrays], spread, program_limit(), FORMAT)
    here = (place.facts, place.isa.name, toolchain().digest or THIS_PROCESS, str(jax.config.jax_enable_x64))
    return keys.digest(shards.text, repr(values), *here)


def _partition(shapes: Any, shardings: Any, result: Any, result_sharding: Any, name: bytes) -> tuple[bytes, Any, Any]:
    """Gives XLA the program of one device, and the shardings that it has operands and results in."""
    call = _partitioned[name.decode()]
    rule, body = call.shards.rule, call.shards.body
    wanted = result_sharding.tuple_elements() if result.is_tuple() else [result_sharding]
    mesh, specs = mesh_of(call.spread.count, [*shardings, *wanted])
    around = specs[: len(shardings)], specs[len(shardings) :]
    whole = [*shapes, *(result.tuple_shapes() if result.is_tuple() else [result])]
    if call.shards.is_cheapest:
        assigned = cheapest(rule, *around, list(map(bytes_of, whole)), mesh.shape)
    else:
        assigned = assign(rule, *around)
    assigned = _computable(call, assigned, mesh, {name: sizes_of(rule, whole, name) for name in assigned})
    given, made = ([spec_by(factors, assigned) for factors in arrays] for arrays in (rule.operands, rule.results))
    sums = Sums({factor: assigned[factor] for factor in rule.sums if assigned.get(factor)})
    if (
        call.shards.scatters
        and call.spread.is_ordered
        and (part := part_of(made[0], around[1][0], sums, whole[-1], mesh))
    ):
        sums.part, made = part, around[1]
    given, made = (
        [
            private.xla_sharding(NamedSharding(mesh, spec), len(factors))
            for factors, spec in zip(arrays, specs, strict=True)
        ]
        for arrays, specs in ((rule.operands, given), (rule.results, made))
    )
    shards = [x.tile(shape) for x, shape in zip(given, shapes, strict=True)]
    avals = [ShapedArray(shard.dimensions(), shard.numpy_dtype()) for shard in shards]
    sizes = {factor: min(sizes_of(rule, whole, factor)) for factor in sums}
    places: Any = {"places": {factor: assigned.get(factor, ()) for factor in rule.places}} if rule.places else {}

    def program(*arrays: jax.Array) -> Sequence[jax.Array]:
        padded = [without_padding(x, dims, sums, sizes) for x, dims in zip(arrays, rule.operands, strict=True)]
        return body(*padded, sums=sums, **places)

    with call.settings(), reports(alone=True) as told:
        code = private.shard_program(program, avals, call.spread.whole(mesh), get_backend("cpu"))
    call.told[:] = [replace(report, devices=call.spread.devices) for report in told]
    return code, given, private.tuple_sharding(result, made)


def _computable(
    call: Partitioned, assigned: dict[str, Axes], mesh: AbstractMesh, sizes: dict[str, list[int]]
) -> dict[str, Axes]:
    """The axes that factors are computed by, of those that were assigned to them."""
    rule = call.shards.rule
    grouped = {sharded(factor) for dims in rule.operands for factor in dims if GROUPED in factor}
    found = {
        factor: fitting(axes, mesh.shape, sizes[factor]) if factor in (*grouped, *rule.even) else axes
        for factor, axes in assigned.items()
    }
    if call.spread.is_ordered:
        return found
    summed = {factor: axes for factor, axes in found.items() if factor in rule.sums}
    is_whole = {axis for axes in summed.values() for axis in axes} == {*mesh.axis_names}
    divides = all(axes == fitting(axes, mesh.shape, sizes[factor]) for factor, axes in summed.items())
    unknown = {*rule.places, *(() if is_whole and divides else rule.sums)}
    return {factor: axes for factor, axes in found.items() if factor not in unknown}


def bytes_of(shape: Any) -> int:
    """Of an array."""
    return math.prod(shape.dimensions()) * shape.numpy_dtype().itemsize


def sizes_of(rule: ShardingRule, shapes: Sequence[Any], factor: str) -> list[int]:
    """The sizes of dimensions of operands and results that are sharded by a factor."""
    return [
        size
        for dims, shape in zip((*rule.operands, *rule.results), shapes, strict=True)
        for name, size in zip(dims, shape.dimensions(), strict=True)
        if sharded(name) == factor
    ]


private.register_partitioner(PARTITIONED, _partition)
