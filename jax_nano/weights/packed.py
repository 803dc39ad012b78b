"""Packed weights: matrices in the panels that microkernels read, packed once instead of in every product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import ad, batching, mlir, xla
from jax.typing import ArrayLike

from jax_nano.ir.dtypes import dtype_name
from jax_nano.ir.packed_weight import Panels
from jax_nano.jaxpr.primitives import nano_unpack_p
from jax_nano.machine.host import machine_for, target
from jax_nano.schedule.weight_panels import panels_for
from jax_nano.weights.kernel_layout import KernelLayout, matrices_of
from jax_nano.weights.weight import Weight, pytree


@pytree(data=("panels",), meta=("k", "n", "target", "layout"))
@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight(Weight):
    """Matrices of K x N in panels, made by `pack`. A pytree of one array, to be handed to jitted functions.

    Products of jax_nano and accelerated programs read the panels where the matrix is their second operand, `x @ w`, and
    convolutions where it is their kernel. To all other functions, on other targets and on other platforms it is the
    array that it stands for, unpacked.

    Attributes:
      panels: (..., panels, K / vnni, width, vnni): columns by panels, rows in interleaved groups, zeros to the end.
      k: K.
      n: N.
      target: the instruction set that it was packed for.
      layout: of a convolution's kernels, whose rows go over taps and input channels.
    """

    panels: Array
    k: int
    n: int
    target: str
    layout: KernelLayout | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., K, N), or that of the kernels."""
        matrices = (*self.panels.shape[:-4], self.k, self.n)
        return self.layout.shape(matrices) if self.layout else matrices

    @property
    def dtype(self) -> Any:
        """That of the array."""
        return self.panels.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the panels."""
        return self.panels.nbytes

    def unpack(self) -> Array:
        """The array that it stands for."""
        matrices = nano_unpack_p.bind(self.panels, k=self.k, n=self.n)
        return self.layout.kernel(matrices) if self.layout else matrices

    __jax_array__ = unpack

    def __repr__(self) -> str:
        return f"PackedWeight({dtype_name(self.dtype)}{list(self.shape)}, for {self.target})"


def pack(w: ArrayLike, *, kernel: str | None = None) -> PackedWeight:
    """Lays out a weight as kernels read it, so that no product `x @ w` has to pack it again.

    The target is this machine's, or what JAX_NANO_TARGET names. Panels take as much memory as the weight, beside the
    padding of K to whole steps of an instruction (64 at most) and of N to whole panels (32 columns at most).

    A convolution's kernel is a matrix whose rows go over taps and input channels. Where output channels stand before
    input channels ("OIHW"), convolutions have their places last, as a rule: then rows of the transposed matrix follow
    one another, as kernels read it there. Kernels of feature groups are not packed: they are read as they lie.

    Args:
      w: (..., K, N) of f64, f32, bf16 or f16, whose products sum over K: `x @ w`; or (..., *kernel).
      kernel: dimensions of a convolution's kernel, as lax.conv_general_dilated names them: "HWIO", "OIHW".

    Returns:
      A pytree that stands for `w` in `matmul`, `einsum`, `conv_general_dilated`, accelerated functions and all others.
      It is no variable to differentiate with respect to: `unpack()` gives the array, which is.

    Raises:
      TypeError: w is not of floats that kernels multiply as they are.
      ValueError: w is no matrix and no such kernel, or has no elements.
      UnsupportedDot: jax_nano has no target for this processor.
    """
    w = jnp.asarray(w)
    if dtype_name(w.dtype) not in ("f64", "f32", "bf16", "f16"):
        raise TypeError(
            f"a weight of {w.dtype} cannot be packed; kernels read panels of float64, float32, bfloat16 and float16"
        )
    if w.ndim < 2 or not w.size:
        raise ValueError(f"a weight of the shape {w.shape} cannot be packed; its last two dimensions have to be (K, N)")
    matrices, layout = matrices_of(w, kernel)
    k, n = matrices.shape[-2:]
    isa = target(machine := machine_for())
    if layout and layout.is_transposed and layout.taps:
        panels = Panels(matrices=1, rows=k, columns=n, width=n, vnni=k)
    else:
        panels = panels_for(dtype_name(w.dtype), k, n, machine, isa)
    return PackedWeight(panels=_pack_panels(matrices, panels), k=k, n=n, target=isa.name, layout=layout)


@partial(jax.jit, static_argnames="panels")
def _pack_panels(w: Array, panels: Panels) -> Array:
    *batch, k, n = w.shape
    padded = jnp.pad(w, [*[(0, 0)] * len(batch), (0, panels.rows - k), (0, panels.columns - n)])
    pieces = padded.reshape(*batch, panels.rows // panels.vnni, panels.vnni, -1, panels.width)
    return jnp.moveaxis(pieces, (-2, -4, -1, -3), (-4, -3, -2, -1))


def _unpack_panels(panels: Array, k: int, n: int) -> Array:
    count, groups, width, group = panels.shape[-4:]
    pieces = jnp.moveaxis(panels, (-4, -3, -2, -1), (-2, -4, -1, -3))
    return pieces.reshape(*panels.shape[:-4], groups * group, count * width)[..., :k, :n]


def _abstract(panels: Any, *, k: int, n: int) -> Any:
    return panels.update(shape=(*panels.shape[:-4], k, n), weak_type=False)


def _jvp(primals, tangents, **params):
    if type(tangents[0]) is not ad.Zero:
        raise TypeError(
            "a PackedWeight has no derivative; differentiate with respect to the array that its unpack() gives, and "
            "pack the outcome"
        )
    out = nano_unpack_p.bind(*primals, **params)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())


def _batch(arrays, axes, **params):
    return nano_unpack_p.bind(jnp.moveaxis(arrays[0], axes[0], 0), **params), 0


nano_unpack_p.def_impl(partial(xla.apply_primitive, nano_unpack_p))
nano_unpack_p.def_abstract_eval(_abstract)
ad.primitive_jvps[nano_unpack_p] = _jvp
batching.primitive_batchers[nano_unpack_p] = _batch
mlir.register_lowering(nano_unpack_p, mlir.lower_fun(_unpack_panels, multiple_results=False))
