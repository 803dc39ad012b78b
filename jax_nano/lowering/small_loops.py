"""Loops that XLA compiles into one function with their products inline, at some 30 ns a step.

A custom call in such a loop has XLA run it operation by operation instead, so small products are left to XLA there.
That is decided when the loop is lowered, as vmap makes products larger before.

What XLA does was found by compiling products of every small size, layout and type in loops; tests/lowering/
test_small_loops.py looks for the same in the HLO of the installed version. Which operations beside products keep XLA
from making one function does not matter here: small products that stand alone are XLA's own code too, and a custom
call would take longer.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.extend.core.primitives import scan_p, while_p
from jax.interpreters import mlir

from jax_nano import config
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.primitives import PRODUCTS, nano_dot_general_p, nano_region_p
from jax_nano.jaxpr.private import LoweringRule, ReplacedLowering, without_cached_functions
from jax_nano.jaxpr.region import Region
from jax_nano.lowering.precision import with_precision
from jax_nano.machine.host import machine
from jax_nano.runtime.kernels import kernel_for
from jax_nano.schedule.cost.inline import inline_seconds, reading_seconds

INLINE = "XLA does this inline"


@dataclass(frozen=True)
class Rules:
    """When one version of XLA makes one function of a loop.

    Attributes:
      bytes: the loop is larger where a step accesses so many.
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
THRESHOLD_FLAG = re.compile(r"xla_cpu_small_while_loop_byte_threshold=(\d+)")


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
      dot: as a kernel computes it; None where that is for XLA.
      bytes: of both operands and the result.
    """

    sizes: tuple[int, int, int, int]
    types: tuple[str, str, str]
    contiguous_rows: bool
    dot: Dot | None
    bytes: int


@dataclass(frozen=True)
class Loop:
    """The products of a loop's step, the loops in it, and how many bytes its state has."""

    products: list[Product]
    loops: list[Loop]
    state_bytes: int

    @property
    def bytes(self) -> int:
        """What a step accesses, about."""
        inner = sum(loop.bytes for loop in self.loops)
        return 2 * self.state_bytes + sum(product.bytes for product in self.products) + inner

    @property
    def has_kernels(self) -> bool:
        """Whether any product could be a kernel."""
        return any(product.dot for product in self.products) or any(loop.has_kernels for loop in self.loops)

    def is_faster_with_xla(self) -> bool:
        """Whether XLA makes one function of it, and faster code than kernels would be."""
        if not all(map(rules().inline, self.products)) or not all(loop.is_faster_with_xla() for loop in self.loops):
            return False
        dots = [(product, product.dot) for product in self.products if product.dot]
        here = machine()
        inline = sum(inline_seconds(product.sizes, dot.acc, here) for product, dot in dots)
        calls = 1e-6 * here.fitted.call_us * len(dots)
        return inline <= calls or inline <= calls + sum(_kernel_seconds(product) for product, _ in dots)


def _kernel_seconds(product: Product) -> float:
    """The predicted time of a product's kernel in a loop, which reads no faster than XLA's code does.

    Endless where there is no kernel.
    """
    assert product.dot
    try:
        kernel = kernel_for(product.dot)
    except UnsupportedDot:
        return math.inf
    here = machine()
    workers = min(here.threads, max(kernel.description.tasks))
    return max(kernel.description.predicted_seconds, reading_seconds(product.bytes, here) / workers)


class UnknownLoop(Exception):
    """The loop has what stays a kernel in any case, or sizes that are not known."""


def read_loop(*step: Jaxpr) -> Loop:
    """Reads a loop.

    Args:
      *step: what is done in each step.

    Raises:
      UnknownLoop: it has packed weights, or sizes that are not known.
    """
    products: list[Product] = []
    loops: list[Loop] = []
    for jaxpr in step:
        for eqn in _equations(jaxpr):
            if eqn.primitive in (while_p, scan_p):
                loops.append(read_loop(*jaxprs_in_params(eqn.params)))
            elif eqn.primitive in PRODUCTS or eqn.primitive is nano_region_p:
                products.append(_read_product(eqn))
    state = [type_of(x) for jaxpr in step for x in jaxpr.outvars]
    return Loop(products, loops, sum(map(_bytes, state)))


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations of a step, those of functions that it calls included, but not those of loops in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive not in (while_p, scan_p):
            for inner in jaxprs_in_params(eqn.params):
                yield from _equations(inner)


def _bytes(aval: Any) -> int:
    if not all(isinstance(size, int) for size in getattr(aval, "shape", ())):
        raise UnknownLoop
    return aval.size * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


def _read_product(eqn: JaxprEqn) -> Product:
    region: Region | None = eqn.params.get("region")
    if region and (region.kernel.dot.panels or region.kernel.dot.scaling):
        raise UnknownLoop
    product = region.product if region else eqn
    lhs, rhs, out = map(type_of, (*product.invars, *product.outvars))
    bytes_accessed = sum(map(_bytes, (lhs, rhs, out)))
    (contracted, _), (batch, _) = product.params["dimension_numbers"]
    b, k = (math.prod(lhs.shape[i] for i in places) for places in (batch, contracted))
    return Product(
        sizes=(b, lhs.size // max(b * k, 1), rhs.size // max(b * k, 1), k),
        types=(dtype_name(lhs.dtype), dtype_name(rhs.dtype), dtype_name(out.dtype)),
        contiguous_rows=lhs.ndim - 1 in contracted,
        dot=_dot_of_kernel(eqn),
        bytes=bytes_accessed,
    )


def _dot_of_kernel(eqn: JaxprEqn) -> Dot | None:
    """What the kernel of a product computes; None where it has none."""
    try:
        if eqn.primitive is nano_region_p:
            kernel = eqn.params["region"].kernel
            return with_precision(kernel.precision, kernel.dot)
        if eqn.primitive is nano_dot_general_p or ReplacedLowering.has_replaced(eqn.primitive):
            lhs, rhs, out = map(type_of, (*eqn.invars, *eqn.outvars))
            a, b = (Operand.row_major(x.shape, dtype_name(x.dtype)) for x in (lhs, rhs))
            dot = Dot.of(a, b, eqn.params["dimension_numbers"], dtype_name(out.dtype))
            return with_precision(eqn.params["precision"], dot)
    except UnsupportedDot:
        pass
    return None


_inline: ContextVar[bool] = ContextVar("jax_nano_inline", default=False)


def check_inline() -> None:
    """Checks that what is lowered now is not part of a loop whose products are left to XLA.

    Raises:
      UnsupportedDot: it is.
    """
    if _inline.get():
        raise UnsupportedDot(INLINE)


def stays_with_xla(*step: Jaxpr) -> bool:
    """Whether the products of a loop of this step are left to XLA."""
    if not config.enabled() or _inline.get():
        return False
    try:
        loop = read_loop(*step)
        return loop.has_kernels and loop.bytes < byte_threshold() and loop.is_faster_with_xla()
    except (UnknownLoop, UnsupportedDot):
        return False


def _lowering(original: LoweringRule) -> LoweringRule:
    """The lowering of while loops, which tells the products in them where they are left to XLA."""

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        if not stays_with_xla(*jaxprs_in_params(params)):
            return original(ctx, *operands, **params)
        token = _inline.set(True)
        try:
            return original(without_cached_functions(ctx), *operands, **params)
        finally:
            _inline.reset(token)

    return lower


ReplacedLowering(while_p, _lowering)
