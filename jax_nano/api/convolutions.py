"""The convolutions that users call: functions of jax.lax, computed by jax_nano.

Each has the signature, result types and errors of its namesake, whose code it runs with jax_nano's convolution in place
of lax.conv_general_dilated. What jax_nano has no kernel for runs as the namesake's would; `jax_nano.inspect` says which
do, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jax_nano.api.products import Sharding, compiled, hashable

Padding = str | Sequence[tuple[int, int]]

OF_WINDOWS = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "precision")
GROUPS = ("feature_group_count", "batch_group_count", "preferred_element_type", "out_sharding")
REQUIRED = ("window_strides", "strides", "padding", "filter_shape")  # None of which is an error of the namesake
OF_TRANSPOSES = (
    "strides", "padding", "rhs_dilation", "dimension_numbers", "transpose_kernel", "precision",
    "preferred_element_type", "use_consistent_padding",
)  # fmt: skip
OF_PATCHES = (
    "filter_shape", "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "precision",
    "preferred_element_type",
)  # fmt: skip
_conv_general_dilated = compiled(lax.conv_general_dilated, *OF_WINDOWS, *GROUPS)
_conv = compiled(lax.conv, "window_strides", "padding", "precision", "preferred_element_type")
_conv_with_general_padding = compiled(
    lax.conv_with_general_padding,
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "precision", "preferred_element_type",
)  # fmt: skip
_conv_transpose = compiled(lax.conv_transpose, *OF_TRANSPOSES)
_conv_general_dilated_local = compiled(lax.conv_general_dilated_local, "filter_shape", *OF_WINDOWS)
_conv_general_dilated_patches = compiled(lax.conv_general_dilated_patches, *OF_PATCHES)


def _given(**params: Any) -> dict[str, Any]:
    """Parameters that JIT can remember programs by; without those that are None, which older namesakes do not have."""
    given = {name: hashable(value) for name, value in params.items() if value is not None or name in REQUIRED}
    hash(tuple(given.values()))  # raises what the namesake does
    return given


def conv_general_dilated(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Sharding = None,
) -> Array:
    """Convolves an image with a kernel, of any number of spatial dimensions: jax.lax.conv_general_dilated.

    Args:
      lhs: the image, with a batch dimension and one of channels beside the spatial ones.
      rhs: the kernel, with dimensions of input and output channels beside the spatial ones.
      window_strides: steps in the image for each place of the result.
      padding: "SAME", "SAME_LOWER", "VALID", or places before and after each spatial dimension.
      lhs_dilation: distance of the image's places, between which zeros are inserted.
      rhs_dilation: distance of the kernel's taps.
      dimension_numbers: which dimension is which, as ("NHWC", "HWIO", "NHWC").
      feature_group_count: groups of channels that make output channels of their own.
      batch_group_count: groups of the batch that make output channels of their own.
      precision: as in `dot_general`.
      preferred_element_type: the type of the result; by default that of the operands.
      out_sharding: the sharding of the result under explicit sharding.

    Returns:
      The result, its dimensions in the order of `dimension_numbers`.

    Raises:
      TypeError: the shapes or types do not go together.
      ValueError: a parameter has another length than there are spatial dimensions, or groups do not divide channels.
    """
    return _conv_general_dilated(lhs, rhs, **_given(
        window_strides=window_strides, padding=padding, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers, feature_group_count=feature_group_count,
        batch_group_count=batch_group_count, precision=precision, preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    ))  # fmt: skip


def conv(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: str,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Convolves (N, C, ...) with (O, C, ...): jax.lax.conv.

    Args:
      lhs: the image.
      rhs: the kernel.
      window_strides: as in `conv_general_dilated`.
      padding: "SAME" or "VALID".
      precision: as in `dot_general`.
      preferred_element_type: as in `conv_general_dilated`.

    Returns:
      (N, O, ...).

    Raises:
      TypeError: the shapes or types do not go together.
    """
    return _conv(lhs, rhs, **_given(
        window_strides=window_strides, padding=padding, precision=precision,
        preferred_element_type=preferred_element_type,
    ))  # fmt: skip


def conv_with_general_padding(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Convolves (N, C, ...) with (O, C, ...), with padding and dilation: jax.lax.conv_with_general_padding.

    Args:
      lhs: the image.
      rhs: the kernel.
      window_strides: as in `conv_general_dilated`, as are all further ones.
      padding: before and after each spatial dimension.
      lhs_dilation: of the image.
      rhs_dilation: of the kernel.
      precision: as in `dot_general`.
      preferred_element_type: of the result.

    Returns:
      (N, O, ...).

    Raises:
      TypeError: the shapes or types do not go together.
    """
    dilations = {"lhs_dilation": hashable(lhs_dilation), "rhs_dilation": hashable(rhs_dilation)}
    return _conv_with_general_padding(lhs, rhs, **dilations, **_given(
        window_strides=window_strides, padding=padding, precision=precision,
        preferred_element_type=preferred_element_type,
    ))  # fmt: skip


def conv_transpose(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    strides: Sequence[int],
    padding: Padding,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,  # noqa: FBT001, FBT002  its namesake's
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **others: Any,
) -> Array:
    """Convolves an image whose places stand apart, "deconvolution": jax.lax.conv_transpose.

    Args:
      lhs: the image.
      rhs: the kernel.
      strides: places of the result for each of the image.
      padding: "SAME", "VALID", or places before and after each spatial dimension.
      rhs_dilation: distance of the kernel's taps.
      dimension_numbers: which dimension is which.
      transpose_kernel: whether the kernel is mirrored, and its channels exchanged.
      precision: as in `dot_general`.
      preferred_element_type: as in `conv_general_dilated`.
      **others: what further parameters the installed JAX has, as use_consistent_padding.

    Returns:
      The result, its dimensions in the order of `dimension_numbers`.

    Raises:
      TypeError: the shapes or types do not go together.
      ValueError: the dimension numbers do not fit.
    """
    return _conv_transpose(lhs, rhs, transpose_kernel=transpose_kernel, **_given(
        strides=strides, padding=padding, rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers,
        precision=precision, preferred_element_type=preferred_element_type, **others,
    ))  # fmt: skip


def conv_general_dilated_local(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Convolves with a kernel of its own for each place: jax.lax.conv_general_dilated_local.

    Args:
      lhs: the image.
      rhs: the kernels.
      window_strides: as in `conv_general_dilated`, as are all further ones.
      padding: before and after each spatial dimension.
      filter_shape: the kernels' spatial sizes.
      lhs_dilation: of the image.
      rhs_dilation: of the kernel.
      dimension_numbers: which dimension is which.
      precision: as in `dot_general`.

    Returns:
      The result, its dimensions in the order of `dimension_numbers`.

    Raises:
      ValueError: the shapes do not go together.
    """
    return _conv_general_dilated_local(lhs, rhs, **_given(
        window_strides=window_strides, padding=padding, filter_shape=filter_shape, lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers, precision=precision,
    ))  # fmt: skip


def conv_general_dilated_patches(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    filter_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Copies what a kernel would see at each place into channels: jax.lax.conv_general_dilated_patches.

    Args:
      lhs: the image.
      filter_shape: the spatial sizes of the kernel.
      window_strides: as in `conv_general_dilated`, as are all further ones.
      padding: before and after each spatial dimension.
      lhs_dilation: of the image.
      rhs_dilation: of the kernel.
      dimension_numbers: which dimension is which.
      precision: as in `dot_general`.
      preferred_element_type: of the result.

    Returns:
      The patches, their dimensions in the order of `dimension_numbers`.

    Raises:
      ValueError: a parameter has another length than there are spatial dimensions.
    """
    return _conv_general_dilated_patches(lhs, **_given(
        filter_shape=filter_shape, window_strides=window_strides, padding=padding, lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers, precision=precision,
        preferred_element_type=preferred_element_type,
    ))  # fmt: skip
