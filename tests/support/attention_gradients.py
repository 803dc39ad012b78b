"""Gradients of attention in NumPy, and what their kernels take: sizes are (B, T, S, N, K, H, Hv)."""

from dataclasses import fields

import ml_dtypes
import numpy as np
from attention import described, exact, row_major, visible
from products import DTYPES

from jax_nano.ir.attention import MASKED
from jax_nano.ir.attention_gradient import AttentionGradient


def gradient_arrays(sizes, dtype):
    b, t, s, n, k, d, dv = sizes
    rng = np.random.default_rng(sizes)
    shapes = (b, t, n, d), (b, s, k, d), (b, s, k, dv), (b, t, n, dv)
    return [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]


def problem_of(sizes, dtype, of, *, bias=None, mask=None, query_lengths=None, key_lengths=None, **places):
    """The gradients of arrays that are row-major."""
    q, k, v, ct = gradient_arrays(sizes, dtype)
    attention = described(
        q,
        k,
        v,
        bias=bias,
        mask=mask,
        scale=sizes[5] ** -0.5,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        **places,
    )
    given = {field.name: getattr(attention, field.name) for field in fields(attention)}
    like = {"out": attention.query, "cotangent": by_query(ct.shape, k.shape[2])}
    like |= {"bias_sizes": bias.shape[:2]} if of == "bias" and bias is not None else {}
    return AttentionGradient(**given | like, of=of)


def by_query(shape, heads):
    """The strides of an array [B, T, N, H] over (b, h, g, t, d)."""
    batch, row, head, one = row_major(*shape)
    return batch, shape[2] // heads * head, head, row, one


def exact_gradients(q, k, v, ct, **masks):
    """(dQ, dK, dV, dS), and by role what kernels are given: of rows, and what rows without keys add to dV."""
    bias = masks.pop("bias", None)
    out, lse, _ = exact(q, k, v, bias=bias, **masks)
    acc = np.promote_types(q.dtype, np.float32)
    q, k, v, ct = (np.asarray(x, np.float64) for x in (q, k, v, ct))
    (*_, heads, d), group = k.shape, q.shape[2] // k.shape[2]
    if (lengths := masks.get("query_lengths")) is not None:
        ct = ct * (np.arange(q.shape[1]) < lengths[:, None])[..., None, None]
    every_k, every_v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.einsum("btnd,bsnd->bnts", q, every_k) / np.sqrt(d)
    scores += 0 if bias is None else np.asarray(bias, np.float64)
    seen = visible(scores.shape, **masks)
    scores = np.where(seen, scores, MASKED)
    largest = scores.max(-1, keepdims=True)
    p = np.exp(scores - largest) / np.exp(scores - largest).sum(-1, keepdims=True)
    delta = np.einsum("btnd,btnd->bnt", ct, out)
    ds = np.where(seen, p * (np.einsum("btnd,bsnd->bnts", ct, every_v) - delta[..., None]), 0)

    def of_heads(x):
        return x.reshape(*x.shape[:-2], heads, group, -1).sum(-2)

    dq = np.einsum("bnts,bsnd->btnd", ds, every_k) / np.sqrt(d)
    dk = of_heads(np.einsum("bnts,btnd->bsnd", ds, q)) / np.sqrt(d)
    dv = of_heads(np.einsum("bnts,btnd->bsnd", p, ct))
    hidden = np.where(lse < MASKED / 2, (p * ~seen).max(-1), 0)
    given = {"logsumexp": lse.astype(acc), "delta": delta, "hidden": hidden}
    given["rest"] = np.log(np.exp(scores - given["logsumexp"][..., None]).sum(-1))
    given["average"] = of_heads(np.einsum("bnt,btnd->bnd", hidden, ct))
    return (dq, dk, dv, ds), given


def of_bias(shape, ds):
    """The gradient of a bias of a shape."""
    return ds.sum(tuple(i for i, size in enumerate(shape) if size == 1 != ds.shape[i]), keepdims=True)


def arrays_of(problem, operands, given, **masks):
    """The arrays of a kernel."""
    q, k, v, ct = operands
    if (lengths := masks.get("query_lengths")) is not None:
        ct = ct * (np.arange(ct.shape[1]) < lengths[:, None])[..., None, None].astype(ct.dtype)
    named = {"query": q, "key": k, "value": v, "cotangent": ct, **masks}
    named |= {name: np.ascontiguousarray(x.astype(DTYPES[problem.acc])) for name, x in given.items()}
    return [named[array.role] for array in problem.arrays if array.role != "out"]


def assert_gradients(run, problem_of_one, operands, **masks):
    """The results of kernels, twice, at both ends of guarded memory, are near the exact ones.

    Args:
      run: gives an AttentionRunner of a problem.
      problem_of_one: gives the problem of the gradients of "queries" or "keys".
      operands: of problems.
      masks: of the attention.
    """
    wanted, given = exact_gradients(*operands, **masks)
    results = {"queries": wanted[:1], "keys": wanted[1:3]}
    if "bias" in masks and masks["bias"].shape[2:] == wanted[3].shape[2:]:
        results["bias"] = [of_bias(masks["bias"].shape, wanted[3])]
    for of, expected in results.items():
        problem = problem_of_one(of)
        runner = run(problem)
        arrays = arrays_of(problem, operands, given, **masks)
        first, second = (runner(*arrays, before=before, seed=before) for before in (False, True))
        for one, other, exact_one in zip(first, second, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            eps = float(ml_dtypes.finfo(one.dtype).eps) + 8 * float(np.finfo(DTYPES[problem.acc]).eps)
            error = np.abs(np.asarray(one, np.float64).reshape(exact_one.shape) - exact_one).max()
            assert error <= 4 * eps * max(np.abs(exact_one).max(), 0.5)  # operands are about 1
