"""Memory of long attention: by how much the process grows beyond operands and results, with and without gradients.

usage: python -m benchmarks.attention_memory [--length 16384] [--heads 8] [--gradients]
"""

import argparse
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jax_nano

DEPTH = 64


def forget_peak() -> None:
    """Has the process's peak begin at what it has now, as Linux does for who writes 5 (proc_pid_clear_refs(5))."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process had since then."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def attend(*arrays: jax.Array) -> jax.Array:
    """Causal attention."""
    return jax_nano.dot_product_attention(*arrays, is_causal=True)


def squares(*arrays: jax.Array) -> jax.Array:
    """A scalar of it."""
    return (attend(*arrays).astype(jnp.float32) ** 2).sum()


def grown_bytes(length: int, heads: int, *, gradients: bool) -> int:
    """By how much the peak grows beyond operands and results, in a process that compiled a smaller one before."""
    f = jax.jit(jax.grad(squares, (0, 1, 2)) if gradients else attend)

    def arrays(size: int) -> Sequence[jax.Array]:
        return [jnp.asarray(np.ones((1, size, heads, DEPTH)), jnp.bfloat16) for _ in range(3)]

    jax.block_until_ready(f(*arrays(128)))
    operands = jax.block_until_ready(arrays(length))
    compiled = f.lower(*operands).compile()
    forget_peak()
    before = peak_bytes()
    results = jax.block_until_ready(compiled(*operands))
    return peak_bytes() - before - sum(x.nbytes for x in jax.tree.leaves(results))


def main() -> None:
    """Prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--gradients", action="store_true")
    args = parser.parse_args()
    grown = grown_bytes(args.length, args.heads, gradients=args.gradients)
    print(f"{args.heads} heads of {DEPTH}, T = S = {args.length}, bf16, causal: {grown / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
