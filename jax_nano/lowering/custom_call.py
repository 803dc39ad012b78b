"""The custom call of a kernel, and on which thread XLA runs the program that it stands in.

XLA runs programs of fewer than 1000 operations on the caller's thread, and counts a custom call as none. That is as it
should be for short kernels, which take less time than a change of threads. A long one would keep its caller waiting,
where callers of JAX go on; and a large result would come out of the caller's heap, of which glibc gives back to Linux
what is free at its end, to be mapped and cleared again for the next result. Such a kernel gets a last operand, which it
does not read and which takes operations to make: the dispatch hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray
from jax.interpreters import mlir

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.gated import Gated
from jax_nano.runtime.kernel import TARGET_NAME, Kernel
from jax_nano.runtime.threads import program_limit

# From here on a kernel or its result is worth a change of threads, which takes 40 us of a call that is waited for, as
# measured on 2 cores of Zen 5. Smaller results stay in the caller's heap.
LONG_SECONDS = 300e-6
LARGE_BYTES = 1 << 20
HINT_ELEMENTS = 1024  # 32-bit integers, each one operation; csrc/handler.cc knows their number


def custom_call(ctx: mlir.LoweringRuleContext, kernel: Kernel, arrays: Sequence[mlir.ir.Value]) -> Any:
    """Calls a kernel with arrays of the types that `ctx.avals_in` say; gives what lowering rules give."""
    avals = [
        ShapedArray(mlir.ir.RankedTensorType(array.type).shape, cast(ShapedArray, aval).dtype)
        for array, aval in zip(arrays, ctx.avals_in, strict=True)
    ]
    argument = next((i for i, array in enumerate(arrays) if isinstance(array.owner, mlir.ir.Block)), None)
    if argument is not None and wants_own_thread(kernel):
        arrays = [*arrays, *_lower_dispatch_hint(ctx.replace(avals_in=[avals[argument]]), arrays[argument])]
        avals.append(ShapedArray((HINT_ELEMENTS,), jnp.int32))
    attributes = kernel.attributes() | {"threads": np.int64(program_limit())}
    return jax.ffi.ffi_lowering(TARGET_NAME)(ctx.replace(avals_in=avals), *arrays, **attributes)


def wants_own_thread(kernel: Kernel) -> bool:
    """Whether a kernel takes long, or makes a large result: longer or larger than a change of threads is worth.

    A gated product does so where either of its products would.
    """
    _, (result, *_) = kernel.arrays
    products = 2 if isinstance(kernel.problem, Gated) else 1
    return bytes_of(*result) >= LARGE_BYTES or kernel.description.predicted_seconds >= products * LONG_SECONDS


def dispatch_hint(array: Array) -> Array:
    """Something that has to be computed when the program runs, as an element of one of its arguments is in it."""
    first = lax.slice(array, (0,) * array.ndim, (1,) * array.ndim).reshape(())
    return lax.iota(jnp.int32, HINT_ELEMENTS) + first.astype(jnp.int32)


_lower_dispatch_hint = mlir.lower_fun(dispatch_hint, multiple_results=False)
