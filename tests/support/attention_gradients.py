"""Gradients of attention in NumPy, and what their kernels take: sizes are (B, T, S, N, K, H, Hv)."""

import ml_dtypes
import numpy as np
from attention import exact, row_major, visible
from products import DTYPES

from jax_nano.ir.attention_gradient import AttentionGradient


def gradient_arrays(sizes, dtype):
    b, t, s, n, k, d, dv = sizes
    rng = np.random.default_rng(sizes)
    shapes = (b, t, n, d), (b, s, k, d), (b, s, k, dv), (b, t, n, dv)
    return [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]


def problem_of(sizes, dtype, of, **masks):
    b, t, s, n, k, d, dv = sizes
    group = n // k

    def by_query(depth):
        batch, row, head, one = row_major(b, t, n, depth)
        return batch, group * head, head, row, one

    def by_key(depth):
        batch, row, head, one = row_major(b, s, k, depth)
        return batch, head, row, one

    return AttentionGradient(
        batch=b, heads=k, group=group, queries=t, keys=s, depth=d, value_depth=dv, dtype=dtype, query=by_query(d),
        key=by_key(d), value=by_key(dv), out=by_query(d), scale=d**-0.5, of=of, cotangent=by_query(dv), **masks,
    )  # fmt: skip


def exact_gradients(q, k, v, ct, **masks):
    """(dQ, dK, dV), logarithms of sums of exponentials, and deltas."""
    out, lse, _ = exact(q, k, v, **masks)
    q, k, v, ct = (np.asarray(x, np.float64) for x in (q, k, v, ct))
    (b, s, heads, d), group = k.shape, q.shape[2] // k.shape[2]
    every_k, every_v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.einsum("btnd,bsnd->bnts", q, every_k) / np.sqrt(d)
    p = np.where(visible(scores.shape, **masks), np.exp(scores - lse[..., None]), 0)
    delta = np.einsum("btnd,btnd->bnt", ct, out)
    ds = p * (np.einsum("btnd,bsnd->bnts", ct, every_v) - delta[..., None]) / np.sqrt(d)
    dq = np.einsum("bnts,bsnd->btnd", ds, every_k)
    dk = np.einsum("bnts,btnd->bsnd", ds, q).reshape(b, s, heads, group, -1).sum(3)
    dv = np.einsum("bnts,btnd->bsnd", p, ct).reshape(b, s, heads, group, -1).sum(3)
    return (dq, dk, dv), lse, delta


def assert_gradients(run, problem_of_one, operands, **masks):
    """The results of kernels, twice, at both ends of guarded memory, are near the exact ones.

    Args:
      run: gives an AttentionRunner of a problem.
      problem_of_one: gives the problem of the gradients of "queries" or "keys".
      operands: of problems.
      masks: of the attention.
    """
    wanted, lse, delta = exact_gradients(*operands, **masks)
    for of, expected in (("queries", wanted[:1]), ("keys", wanted[1:])):
        problem = problem_of_one(of)
        runner = run(problem)
        statistics = [np.ascontiguousarray(x.astype(DTYPES[problem.acc])) for x in (lse, delta)]
        first, second = (runner(*operands, *statistics, before=before, seed=before) for before in (False, True))
        for one, other, exact_one in zip(first, second, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            eps = float(ml_dtypes.finfo(one.dtype).eps) + 8 * float(np.finfo(DTYPES[problem.acc]).eps)
            error = np.abs(np.asarray(one, np.float64).reshape(exact_one.shape) - exact_one).max()
            assert error <= 4 * eps * np.abs(exact_one).max()
