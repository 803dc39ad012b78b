"""Products that XLA emits inline, in the code of the function that it makes of what is around them.

What XLA does was found by compiling products of every small size, layout and type in loops; tests/lowering/
test_small_loops.py looks for the same in the HLO of the installed version.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jaxlib.version
from jax.lax import DotAlgorithm, DotAlgorithmPreset

from jax_nano import config
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.jaxpr.grouped.dimensions import GroupedDimensions, grouped_of
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.legality import WEIGHTS
from jax_nano.jaxpr.region import Region
from jax_nano.lowering.precision import with_precision
from jax_nano.machine.isa import Machine
from jax_nano.runtime.kernels import kernel_for
from jax_nano.schedule.cost.inline import inline_seconds, reading_seconds

Params = dict[str, Any]  # of an equation


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


GROUPED = "ragged_dot_dimension_numbers"  # the parameter that only grouped products have
CONVOLUTION_SPECS = 3  # of the image, the kernel and the result, where products have pairs of dimensions
EIGEN_SIZE = 8  # from which on XLA has Eigen compute a product of floats whose A has contiguous rows
MIN_STEPS = MIN_WIDTH = 4  # of what YNNPACK computes
YNNPACK_TYPES = frozenset("f64 f32 bf16 f16 f8e5m2 f8e4m3fn s32 s8 u8".split())
BEFORE_0_12 = Rules(bytes=1 << 10, library_types=frozenset({"s8"}), library_size=8, library_layouts=False)
FROM_0_12 = Rules(bytes=10**9, library_types=YNNPACK_TYPES, library_size=0, library_layouts=True)
THRESHOLD_FLAG = re.compile(r"xla_cpu_small_while_loop_byte_threshold=(-?\d+)")

MULTIPLIES = "each sum has one term: XLA multiplies, in one loop with what reads it"
MULTIPLIED = ("float64", "float32")  # which XLA does not widen

# What XLA computes as kernels do: in the type of the sums, rounded once.
XLA_TYPES = frozenset("f64 f32 bf16 f16 s8 u8".split())


@functools.cache
def rules() -> Rules:
    """Those of the XLA in the installed jaxlib."""
    return FROM_0_12 if tuple(map(int, jaxlib.version.__version__.split(".")[:2])) >= (0, 12) else BEFORE_0_12


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
      bytes: of both operands and the result.
    """

    sizes: tuple[int, int, int, int]
    types: tuple[str, str, str]
    contiguous_rows: bool
    dot: Dot | Grouped | Gated | None = None
    for_kernels: bool = False
    conditional: bool = False
    bytes: int = 0

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
        reading = reading_seconds(self.dot.bytes, machine)
        return max(kernel.description.predicted_seconds, reading / workers)


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


class SymbolicSize(Exception):
    """A size is not known."""


def bytes_in(aval: Any) -> int:
    """The size of an array; 0 for what is none.

    Raises:
      SymbolicSize: a size is not known.
    """
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
        weight = any(eqn.primitive in WEIGHTS for eqn in region.jaxpr.eqns)
    lhs, rhs, *_, out = avals
    size = sum(map(bytes_in, avals))
    types = dtype_name(lhs.dtype), dtype_name(rhs.dtype), dtype_name(out.dtype)
    if GROUPED in params:
        return _grouped_product(params, avals, region, kernels=kernels, conditional=conditional)
    if len(params["dimension_numbers"]) == CONVOLUTION_SPECS:
        dot = region.kernel.dot if region else None
        return Product(
            (1, 1, 1, 1), types, contiguous_rows=True, dot=dot, for_kernels=True, conditional=conditional, bytes=size
        )
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
        bytes=size,
    )


def check_multiplies(params: Params, avals: Sequence[Any]) -> None:
    """Checks that XLA does not multiply two arrays elementwise in the place of a product, whose sums have one term.

    It does so in one loop with what reads the product, where a kernel would leave it in memory.

    Raises:
      UnsupportedDot: it does.
    """
    lhs, out = avals[0], avals[2]
    (contracted, _), _ = params["dimension_numbers"]
    is_outer = all(lhs.shape[i] == 1 for i in contracted)
    if (
        is_outer
        and lhs.dtype == out.dtype
        and out.dtype.name in MULTIPLIED
        and not _asks_for_rounding(params["precision"])
    ):
        raise UnsupportedDot(MULTIPLIES)


def _grouped_product(
    params: Params, avals: Sequence[Any], region: Region | None, *, kernels: bool, conditional: bool
) -> Product:
    """Reads a grouped product: to XLA one of all rows, masked, with the matrices of all groups behind one another."""
    lhs, rhs, _, out = avals
    dims = GroupedDimensions.of(params[GROUPED], lhs.ndim, rhs.ndim)
    groups, k = avals[2].shape[-1], math.prod(lhs.shape[d] for d in dims.lhs_contract)
    batch = math.prod(lhs.shape[d] for d in dims.lhs_batch)
    free = lhs.size // max(batch * k, 1), math.prod(rhs.shape[d] for d in dims.rhs_free)
    sizes = (batch, *free, groups * k) if dims.mode == "m" else (groups * batch, *free, k)
    types = dtype_name(lhs.dtype), dtype_name(rhs.dtype), dtype_name(out.dtype)
    dot = _dot_of_kernel(region, params, avals) if kernels else None
    weight = region is not None and any(eqn.primitive in WEIGHTS for eqn in region.jaxpr.eqns)
    otherwise = weight or not {*types[:2]} <= XLA_TYPES or _asks_for_rounding(params["precision"])
    return Product(
        sizes=sizes, types=types, contiguous_rows=True, dot=dot, for_kernels=dot is not None and otherwise,
        conditional=conditional, bytes=sum(map(bytes_in, avals)),
    )  # fmt: skip


def _asks_for_rounding(precision: Any) -> bool:
    """Whether a precision is an algorithm, which XLA may not know, or not follow."""
    return isinstance(precision, DotAlgorithm | DotAlgorithmPreset) and precision is not DotAlgorithmPreset.DEFAULT


def _dot_of_kernel(region: Region | None, params: Params, avals: Sequence[Any]) -> Dot | Grouped | Gated | None:
    """What the kernel of a product computes; None where it has none."""
    try:
        if region:
            return with_precision(region.kernel.precision, region.kernel.dot)
        a, b, *others = (Operand.row_major(aval.shape, dtype_name(aval.dtype)) for aval in avals)
        if GROUPED in params:
            return with_precision(params["precision"], grouped_of(params[GROUPED], a, b, *others))
        dot = Dot.of(a, b, params["dimension_numbers"], dtype_name(avals[2].dtype))
        return with_precision(params["precision"], dot)
    except UnsupportedDot:
        return None
