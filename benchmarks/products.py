"""The products that are timed, and the libraries that compute them."""

import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_nano
from benchmarks import roof
from benchmarks.timing import best_of
from jax_nano.machine import host
from jax_nano.machine.host import target

DTYPES = {"f32": jnp.float32, "f64": jnp.float64}


class Size(NamedTuple):
    """Rows of A, columns of B, and what is summed over."""

    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Of `512` (a cube) or `1x4096x4096` (M x N x K)."""
        sizes = [int(size) for size in text.split("x")]
        if len(sizes) not in (1, 3) or min(sizes) < 1:
            raise ValueError(f"{text!r} is neither a size nor MxNxK")
        return cls(*(sizes * 3)[:3])

    @property
    def is_cube(self) -> bool:
        """Whether all three are equal."""
        return self.m == self.n == self.k

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * math.prod(self)

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Timing(NamedTuple):
    """One product, timed with every library, and the peak of the processor's FMAs, timed in turn with them."""

    dtype: str
    size: Size
    seconds: dict[str, float]  # by library
    peak_gflops: float  # on all threads

    def gflops(self, library: str) -> float:
        """10^9 floating-point operations a second."""
        return self.size.flops / self.seconds[library] / 1e9


def libraries() -> list[str]:
    """Those that are installed, jax_nano first."""
    return ["jax_nano", "XLA", "NumPy", *(["PyTorch"] if importlib.util.find_spec("torch") else [])]


def product(library: str, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """A function that multiplies a by b, and returns when it is done."""
    if library in ("jax_nano", "XLA"):
        multiply = jax.jit(jax_nano.matmul if library == "jax_nano" else jnp.matmul)
        left, right = jnp.asarray(a), jnp.asarray(b)
        return lambda: multiply(left, right).block_until_ready()
    if library == "NumPy":
        return lambda: np.matmul(a, b)
    torch = importlib.import_module("torch")
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: torch.matmul(left, right)


def measure(dtype: str, size: Size, turns: int) -> Timing:
    """Times one product with every library in turn."""
    random = np.random.default_rng(0)
    isa = target(host.machine())
    probe, threads = roof.fma_probe(dtype, (isa.vectors or isa).name), host.threads()
    with jax.enable_x64(dtype == "f64"):
        a = random.standard_normal((size.m, size.k)).astype(DTYPES[dtype])
        b = random.standard_normal((size.k, size.n)).astype(DTYPES[dtype])
        products = {name: product(name, a, b) for name in libraries()}
        *seconds, peak_seconds = best_of([*products.values(), roof.repeated(probe, threads)], turns)
    return Timing(dtype, size, dict(zip(products, seconds, strict=True)), probe.gflop(threads) / peak_seconds)
