"""Loops in which small products are left to XLA, and which those are.

XLA compiles a loop into one function where it can, with small products inline, at some 10 ns a step. A custom call in
it has XLA run it operation by operation instead. So where all products of a loop are such, and XLA's code takes no
longer than kernels and their calls would, all are left to it. In loops that XLA runs operation by operation anyway,
this is decided for each product. It is decided when the loop is lowered, as vmap makes products larger before.

What XLA does was found by compiling products of every small size, layout and type in loops; tests/lowering/
test_small_loops.py looks for the same in the HLO of the installed version. Which operations beside products keep XLA
from making one function does not matter: a small product that stands alone is XLA's own code, too, and shorter than a
call.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.extend.core.primitives import cond_p, dot_general_p, dynamic_update_slice_p, scan_p, while_p
from jax.interpreters import mlir
from jax.lax import DotAlgorithm, DotAlgorithmPreset

from jax_nano import config
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.ir.dtypes import bytes_of, dtype_name
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.primitives import PRODUCTS, nano_dequantize_p, nano_region_p, nano_unpack_p
from jax_nano.jaxpr.private import LoweringRule, ReplacedLowering, functions_apart, wrap_lowering
from jax_nano.jaxpr.region import Region
from jax_nano.lowering.precision import with_precision
from jax_nano.machine.host import machine_for, target
from jax_nano.machine.isa import Machine
from jax_nano.runtime.kernels import kernel_for
from jax_nano.schedule.cost.inline import inline_seconds, reading_seconds

Params = dict[str, Any]  # of an equation
INLINE = "XLA does this inline"


@dataclass(frozen=True)
class Rules:
    """When one version of XLA makes one function of a loop.

    Attributes:
      bytes: it does not where a step accesses so many.
      library_types: the element types of A whose products a library computes, from MIN_STEPS and MIN_WIDTH on.
      library_size: the largest size of such a product is at least this.
      library_layouts: is true where that library takes A in any layout.
    """

    bytes: int
    library_types: frozenset[str]
    library_size: int
    library_layouts: bool

    def inline(self, product: Product) -> bool:
        """Whether XLA emits a product inline."""
        _, m, n, k = product.sizes
        lhs, _, out = product.types
        if 1 in (m, n, k):
            return True
        rows = product.contiguous_rows
        if rows and out[0] in "bf" and max(m, n, k) >= EIGEN_SIZE:
            return False
        library = lhs in self.library_types and (rows or self.library_layouts)
        return not (library and k >= MIN_STEPS and max(m, n) >= MIN_WIDTH and max(m, n, k) >= self.library_size)


EIGEN_SIZE = 8  # from which on XLA has Eigen compute a product of floats whose A has contiguous rows
MIN_STEPS = MIN_WIDTH = 4  # of what YNNPACK computes
YNNPACK_TYPES = frozenset("f64 f32 bf16 f16 f8e5m2 f8e4m3fn s32 s8 u8".split())
BEFORE_0_12 = Rules(bytes=1 << 10, library_types=frozenset({"s8"}), library_size=8, library_layouts=False)
FROM_0_12 = Rules(bytes=10**9, library_types=YNNPACK_TYPES, library_size=0, library_layouts=True)
THRESHOLD_FLAG = re.compile(r"xla_cpu_small_while_loop_byte_threshold=(-?\d+)")

# What XLA computes as kernels do: in the type of the sums, rounded once.
XLA_TYPES = frozenset("f64 f32 bf16 f16 s8 u8".split())
# Equations that XLA fuses with nothing that follows, by how their names begin.
UNFUSED = ("reduce_", "arg", "cum", "concatenate", "gather", "dynamic_update_slice")


@functools.cache
def rules() -> Rules:
    """Those of the XLA in the installed jaxlib."""
    return FROM_0_12 if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 12) else BEFORE_0_12


def byte_threshold() -> int:
    """From how many bytes on, accessed by a step, a loop does not become one function: users can set that."""
    given = THRESHOLD_FLAG.findall(config.text("XLA_FLAGS"))
    return int(given[-1]) if given else rules().bytes


@dataclass(frozen=True)
class Product:
    """A product in a loop.

    Attributes:
      sizes: B, M, N and K.
      types: of both operands and of the result.
      contiguous_rows: is true where K is A's last dimension.
      dot: as a kernel computes it; None where there is none.
      for_kernels: is true where XLA would do something else, or more: read weights that are packed or quantized, or
        round otherwise than was asked for.
      conditional: is true where a step may do without it.
    """

    sizes: tuple[int, int, int, int]
    types: tuple[str, str, str]
    contiguous_rows: bool
    dot: Dot | None = None
    for_kernels: bool = False
    conditional: bool = False

    @property
    def bytes(self) -> int:
        """Of both operands and the result."""
        return _bytes_read(self.sizes, self.types)

    @property
    def is_inline(self) -> bool:
        """Whether XLA emits it inline."""
        return not self.for_kernels and rules().inline(self)

    def inline_seconds(self, machine: Machine) -> float:
        """The predicted time of XLA's code."""
        assert self.dot
        return inline_seconds(self.sizes, self.dot.acc, machine)

    def kernel_seconds(self, machine: Machine) -> float:
        """The predicted time of the kernel, which reads no faster than XLA's code; endless if it does not compile."""
        assert self.dot
        try:
            kernel = kernel_for(self.dot)
        except UnsupportedDot:
            return math.inf
        workers = min(machine.threads, max(kernel.description.tasks))
        reading = reading_seconds(_bytes_read(self.dot.sizes, (*self.dot.operands, self.dot.out)), machine)
        return max(kernel.description.predicted_seconds, reading / workers)


def _bytes_read(sizes: tuple[int, int, int, int], types: tuple[str, ...]) -> int:
    b, m, n, k = sizes
    lhs, rhs, out = types
    return bytes_of(lhs, b * m * k) + bytes_of(rhs, b * k * n) + bytes_of(out, b * m * n)


def is_faster_inline(products: list[Product], machine: Machine, pieces: int = 0) -> bool:
    """Whether XLA's code for products takes no longer than their kernels would.

    Args:
      products: what has kernels, all of them in one loop, or one of them.
      machine: where they run.
      pieces: how many operations stand alone beside the kernels that XLA would fuse with its own code.
    """
    fitted = machine.fitted
    inline = sum(product.inline_seconds(machine) for product in products)
    calls = 1e-6 * (fitted.call_us * len(products) + fitted.piece_us * pieces)
    return inline <= calls or inline <= calls + sum(product.kernel_seconds(machine) for product in products)


@dataclass(frozen=True)
class Loop:
    """What is known of a loop's step.

    Attributes:
      products: its own.
      loops: those in it.
      state_bytes: what it writes of its state.
      pieces: how many of its operations XLA fuses with nothing that follows.
    """

    products: list[Product]
    loops: list[Loop]
    state_bytes: int
    pieces: int

    @property
    def bytes(self) -> int:
        """What a step accesses, by its products and its state: not exact."""
        inner = sum(loop.bytes for loop in self.loops)
        return 2 * self.state_bytes + sum(product.bytes for product in self.products) + inner

    @property
    def has_kernels(self) -> bool:
        """Whether any product could be a kernel."""
        return any(product.dot for product in self.products) or any(loop.has_kernels for loop in self.loops)

    def is_function(self, machine: Machine) -> bool:
        """Whether XLA makes one function of it that takes no longer than kernels would."""
        inline = all(product.is_inline for product in self.products)
        if not inline or not all(loop.is_function(machine) for loop in self.loops):
            return False
        return is_faster_inline([p for p in self.products if p.dot and not p.conditional], machine, self.pieces)


class SymbolicSize(Exception):
    """A size is not known."""


def read_loop(*step: Jaxpr) -> Loop:
    """Reads a loop.

    Args:
      *step: what is done in each step.

    Raises:
      SymbolicSize: a size is not known.
    """
    products: list[Product] = []
    loops: list[Loop] = []
    pieces = 0
    for jaxpr in step:
        for eqn, conditional in _equations(jaxpr):
            if eqn.primitive in (while_p, scan_p):
                loops.append(read_loop(*jaxprs_in_params(eqn.params)))
            elif eqn.primitive in PRODUCTS or eqn.primitive is nano_region_p:
                avals = [type_of(x) for x in (*eqn.invars, *eqn.outvars)]
                kernels = eqn.primitive is not dot_general_p or ReplacedLowering.has_replaced(dot_general_p)
                products.append(read_product(eqn.params, avals, kernels=kernels, conditional=conditional))
            pieces += eqn.primitive.name.startswith(UNFUSED)
    return Loop(products, loops, sum(map(_written_bytes, step)), pieces)


def _equations(jaxpr: Jaxpr, *, conditional: bool = False) -> Iterator[tuple[JaxprEqn, bool]]:
    """All equations of a step, and whether it may do without each.

    Those of functions that it calls are among them, but not those of loops in it.
    """
    for eqn in jaxpr.eqns:
        yield eqn, conditional
        if eqn.primitive not in (while_p, scan_p):
            for inner in jaxprs_in_params(eqn.params):
                yield from _equations(inner, conditional=conditional or eqn.primitive is cond_p)


def _written_bytes(jaxpr: Jaxpr) -> int:
    """How many bytes of its results a step writes: of an array that is updated in place, only the part."""
    made = {id(out): eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    given = {id(x) for x in jaxpr.invars}
    total = 0
    for out in jaxpr.outvars:
        if id(out) not in given:
            eqn = made.get(id(out))
            written = eqn.invars[1] if eqn and eqn.primitive is dynamic_update_slice_p else out
            total += _bytes(type_of(written))
    return total


def _bytes(aval: Any) -> int:
    if not all(isinstance(size, int) for size in getattr(aval, "shape", ())):
        raise SymbolicSize
    return aval.size * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


def read_product(params: Params, avals: Sequence[Any], *, kernels: bool = True, conditional: bool = False) -> Product:
    """Reads a product or a region.

    Args:
      params: of its equation.
      avals: the types of a product's operands and result; a region has them itself.
      kernels: whether its kernel would be taken.
      conditional: whether the step that it is in may do without it.

    Raises:
      SymbolicSize: a size is not known.
    """
    region, weight = params.get("region"), False
    if region:
        params, avals = region.product.params, list(map(type_of, (*region.product.invars, *region.product.outvars)))
        weight = any(eqn.primitive in (nano_unpack_p, nano_dequantize_p) for eqn in region.jaxpr.eqns)
    lhs, rhs, out = avals
    for aval in avals:
        _bytes(aval)
    types = dtype_name(lhs.dtype), dtype_name(rhs.dtype), dtype_name(out.dtype)
    (contracted, _), (batch, _) = params["dimension_numbers"]
    b, k = (math.prod(lhs.shape[i] for i in places) for places in (batch, contracted))
    dot = _dot_of_kernel(region, params, avals) if kernels else None
    otherwise = not {*types[:2]} <= XLA_TYPES or _asks_for_rounding(params["precision"])
    return Product(
        sizes=(b, lhs.size // max(b * k, 1), rhs.size // max(b * k, 1), k),
        types=types,
        contiguous_rows=lhs.ndim - 1 in contracted,
        dot=dot,
        for_kernels=dot is not None and (weight or otherwise),
        conditional=conditional,
    )


def _asks_for_rounding(precision: Any) -> bool:
    """Whether a precision is an algorithm, which XLA may not know, or not follow."""
    return isinstance(precision, DotAlgorithm | DotAlgorithmPreset) and precision is not DotAlgorithmPreset.DEFAULT


def _dot_of_kernel(region: Region | None, params: Params, avals: Sequence[Any]) -> Dot | None:
    """What the kernel of a product computes; None where it has none."""
    try:
        if region:
            return with_precision(region.kernel.precision, region.kernel.dot)
        a, b = (Operand.row_major(aval.shape, dtype_name(aval.dtype)) for aval in avals[:2])
        dot = Dot.of(a, b, params["dimension_numbers"], dtype_name(avals[2].dtype))
        return with_precision(params["precision"], dot)
    except UnsupportedDot:
        return None


Place = Literal["function", "operations"]
"""What XLA makes of the innermost loop around: one function, or one operation after the other."""
_place: ContextVar[Place | None] = ContextVar("jax_nano_loop", default=None)


def check_inline(params: Params, avals: Sequence[Any]) -> None:
    """Checks that what is lowered is not left to XLA because of the loop around it.

    Args:
      params: of the equation of a product or a region.
      avals: the types of a product's operands and result.

    Raises:
      UnsupportedDot: it is.
    """
    place = _place.get()
    if place == "function":
        raise UnsupportedDot(INLINE)
    if place == "operations":
        product = read_product(params, avals)
        if product.dot and product.is_inline and is_faster_inline([product], machine_for()):
            raise UnsupportedDot(INLINE)


def place_of(*step: Jaxpr) -> Place | None:
    """What XLA makes of a loop; None where no product in it could be a kernel."""
    try:
        loop = read_loop(*step)
    except SymbolicSize:
        return None
    if not loop.has_kernels:
        return None
    here = machine_for()
    target(here)  # one that there is not is an error
    return "function" if loop.bytes < byte_threshold() and loop.is_function(here) else "operations"


def _lowering(original: LoweringRule) -> LoweringRule:
    """The lowering of while loops, which tells the products in them what becomes of the loop."""

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        known = (
            _place.get() == "function"
            or not config.enabled()
            or "cpu" not in (ctx.platforms or ctx.module_context.platforms)
        )
        place = None if known else place_of(*jaxprs_in_params(params))
        if not place:
            return original(ctx, *operands, **params)
        token = _place.set(place)
        try:
            with functions_apart(ctx, f"jax_nano: {place}"):
                return original(ctx, *operands, **params)
        finally:
            _place.reset(token)

    return lower


wrap_lowering(while_p, _lowering)
