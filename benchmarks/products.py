"""Matrix products C = A B of every type that kernels multiply, and with weights in the forms that jax_nano has."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import jax_nano
from benchmarks.suite import Calls, Case, Suite, installed
from jax_nano.ir.dtypes import BITS, NUMPY_TYPES, bytes_of

MATRICES = (((1,), (0,)), ((), ()))
BLAS = ("f32", "f64")  # others NumPy multiplies in plain loops
TORCH = {"f32": "float32", "f64": "float64", "bf16": "bfloat16", "f16": "float16"}


class Size(NamedTuple):
    """Rows of A, columns of B, and what is summed over."""

    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Of `512` (a cube) or `1x4096x4096` (M x N x K).

        Raises:
          ValueError: it is neither.
        """
        sizes = [int(size) for size in text.split("x") if size.isdecimal()]
        if len(sizes) != text.count("x") + 1 or len(sizes) not in (1, 3) or min(sizes) < 1:
            raise ValueError(f"{text!r} is neither a size nor MxNxK")
        return cls(*(sizes * 3)[:3])

    def __str__(self) -> str:
        return "x".join(map(str, self))


def cubes(*sizes: int) -> tuple[Size, ...]:
    """Products of square matrices."""
    return tuple(Size(n, n, n) for n in sizes)


MANY = cubes(32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
SOME = cubes(64, 256, 1024, 2048)
ROWS = tuple(Size(m, 4096, 4096) for m in (1, 16, 128))  # of a layer's weight


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Element types, and the form in which jax_nano takes B. Other libraries take it as an array of B's type."""

    name: str
    lhs: str
    rhs: str
    out: str
    multiplies: tuple[str, ...]
    form: Callable[[Array], Any] | None = None
    quantized: bool = False  # the form rounds B
    sizes: tuple[Size, ...] = SOME


def of_types(lhs: str, rhs: str, out: str, **more: Any) -> Kind:
    """Arrays on both sides, named as `python -m jax_nano inspect` names types."""
    name = lhs + (f"x{rhs}" if rhs != lhs else "") + (f">{out}" if out not in (lhs, "s32") else "")
    multiplies = ("8 bits",) if out == "s32" else ("f64",) if out == "f64" else (lhs, "f32")
    return Kind(name=name, lhs=lhs, rhs=rhs, out=out, multiplies=multiplies, **more)


def of_weight(dtype: str, name: str, form: Callable[[Array], Any], **more: Any) -> Kind:
    """A weight in a form of jax_nano's."""
    return replace(of_types(dtype, dtype, dtype), name=f"{dtype}+{name}", form=form, **({"sizes": ROWS} | more))


quantized = partial(of_weight, "bf16", quantized=True)
KINDS = {
    kind.name: kind
    for kind in (
        of_types("f32", "f32", "f32", sizes=MANY),
        of_types("f64", "f64", "f64", sizes=MANY),
        of_types("bf16", "bf16", "bf16", sizes=MANY),
        of_types("f16", "f16", "f16"),
        of_types("bf16", "bf16", "f32"),
        of_types("f16", "f16", "f32"),
        of_types("s8", "s8", "s32"),
        of_types("u8", "s8", "s32"),
        of_types("s4", "s4", "s32"),
        of_types("f8e4m3fn", "f8e4m3fn", "bf16"),
        of_weight("f32", "packed", jax_nano.pack),
        of_weight("bf16", "packed", jax_nano.pack),
        quantized("int8", partial(jax_nano.quantize, bits=8)),
        quantized("int4", partial(jax_nano.quantize, bits=4)),
        quantized("int4:64", partial(jax_nano.quantize, bits=4, group=64)),
        quantized("int8xint8", partial(jax_nano.quantize, bits=8, activations="int8"), multiplies=("8 bits",)),
    )
}


def cases(kinds: Sequence[str], sizes: Sequence[str]) -> list[Case]:
    """The cases of some kinds, of these sizes or each kind's own."""
    parsed = tuple(map(Size.parse, sizes))
    return [case(KINDS[kind], size) for kind in kinds for size in parsed or KINDS[kind].sizes]


def case(kind: Kind, size: Size) -> Case:
    """One product."""
    m, n, k = size
    moved = bytes_of(kind.lhs, m * k) + bytes_of(kind.rhs, k * n) + bytes_of(kind.out, m * n)
    return Case(kind=kind.name, name=str(size), sizes=size._asdict(), flops=2 * math.prod(size), bytes=moved,
                multiplies=kind.multiplies)  # fmt: skip


def prepare(case: Case) -> Calls:
    """Operands, the libraries' functions of them, and the check of jax_nano's result."""
    kind, size = KINDS[case.kind], Size(**case.sizes)
    rng = np.random.default_rng(0)
    a = drawn(rng, (size.m, size.k), kind.lhs)
    b = drawn(rng, (size.k, size.n), kind.rhs)
    x, w = jnp.asarray(a), jnp.asarray(b)
    taken: Any = kind.form(w) if kind.form else w
    out = NUMPY_TYPES[kind.out]
    functions = {
        "jax_nano": product(jax_nano.dot_general, (x, taken), out),
        "XLA": product(lax.dot_general, (x, w), out),
    }
    if kind.lhs == kind.rhs == kind.out:
        if kind.lhs in BLAS:
            functions["NumPy"] = lambda: np.matmul(a, b)
        if kind.lhs in TORCH and "PyTorch" in installed():
            functions["PyTorch"] = torch_product(a, b, TORCH[kind.lhs])
    error = np.asarray(jax_nano.quantization_error(x, taken, out), np.float64) if kind.quantized else None
    return Calls(functions=functions, check=lambda: check(case, functions["jax_nano"](), (a, b), error))


def drawn(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> np.ndarray:
    """Normal floats, or integers of the whole range of their type."""
    if dtype[0] not in "su":
        return rng.standard_normal(shape).astype(NUMPY_TYPES[dtype])
    least = -(1 << BITS[dtype] - 1) if dtype[0] == "s" else 0
    return rng.integers(least, least + (1 << BITS[dtype]), shape).astype(NUMPY_TYPES[dtype])


def product(dot_general: Callable[..., Array], operands: Sequence[Any], out: Any) -> Callable[[], Array]:
    """A jitted product, which waits for its result."""
    jitted = jax.jit(partial(dot_general, dimension_numbers=MATRICES, preferred_element_type=out))
    return lambda: jitted(*operands).block_until_ready()


def torch_product(a: np.ndarray, b: np.ndarray, dtype: str) -> Callable[[], Any]:
    """PyTorch's product. It takes no bf16 from NumPy, so operands come as f64."""
    torch = importlib.import_module("torch")
    left, right = (torch.from_numpy(x.astype(np.float64)).to(getattr(torch, dtype)) for x in (a, b))
    return lambda: torch.matmul(left, right)


def check(case: Case, result: Array, operands: Sequence[np.ndarray], error: np.ndarray | None) -> None:
    """Compares with NumPy in float64, which is exact for integers.

    Args:
      case: the product.
      result: jax_nano's.
      operands: A and B.
      error: how far the product may be, where B is rounded; else docs/numerics.md has the bound.

    Raises:
      ValueError: some element is beyond that.
    """
    a, b = (x.astype(np.float64) for x in operands)
    exact = a @ b
    bound = promised(a, b, exact, result.dtype) if error is None else error
    off = abs(np.asarray(result, np.float64) - exact)
    if not np.all(off <= bound):
        worst = np.unravel_index(np.argmax(off - bound), off.shape)
        raise ValueError(
            f"{case.kind} {case.name}: element {tuple(map(int, worst))} of jax_nano's result is off by {off[worst]:g}, "
            f"where {bound[worst]:g} is promised; please report it, with what `python -m jax_nano info` prints"
        )


def promised(a: np.ndarray, b: np.ndarray, exact: np.ndarray, dtype: Any) -> np.ndarray:
    """K eps (|A| |B|) + half an ulp of the result, elementwise; nothing for integers."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.zeros_like(exact)
    out, is_f64 = jnp.finfo(dtype), dtype == np.float64
    eps = np.finfo(np.float64 if is_f64 else np.float32).eps
    terms = a.shape[1] * (2 if is_f64 else 1)  # the oracle's own error counts where it is no wider
    return terms * eps * (abs(a) @ abs(b)) + float(out.eps) / 2 * abs(exact) + float(out.smallest_subnormal)


SUITE = Suite(name="products", kinds=tuple(KINDS), cases=cases, prepare=prepare)
