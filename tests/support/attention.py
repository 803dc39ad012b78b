"""Attention against NumPy in float64, and its kernels on memory whose every neighbour is forbidden."""

import ctypes

import ml_dtypes
import numpy as np
from kernel_runner import LINE, POISONED_BYTES, Guarded, guarded_copy, linked
from products import DTYPES

from jax_nano import _native
from jax_nano.codegen.module import build_module, phase_symbols
from jax_nano.ir.attention import MASKED, Attention, ScoreArray
from jax_nano.machine import host
from jax_nano.runtime.kernel import processor_for
from jax_nano.schedule.attention.choose import choose_attention


def visible(shape, *, mask=None, causal=False, window=None, query_lengths=None, key_lengths=None):
    """Which pairs are not masked, [B, N, T, S]."""
    b, _, t, s = shape
    i, j = np.arange(t)[:, None], np.arange(s)[None]
    seen = np.ones(shape, bool)
    if mask is not None:
        seen &= mask
    if causal:
        seen &= j <= i
    if window is not None:
        seen &= (i <= j + window[0]) & (i >= j - window[1])
    if query_lengths is not None:
        seen &= (i[None] < np.reshape(query_lengths, (b, 1, 1)))[:, None]
    if key_lengths is not None:
        seen &= (j[None] < np.reshape(key_lengths, (b, 1, 1)))[:, None]
    return seen


def exact(query, key, value, *, bias=None, score=None, scale=None, query_lengths=None, **masks):
    """(out, logsumexp, magnitude) in float64, of [B, T, N, H] and [B, S, K, H] and [B, S, K, Hv].

    `score` is a function of scores and of the numbers along each axis, elementwise in NumPy.
    `magnitude` is that of what is averaged, sum of p |v|, and of how far rounding of scores moves that.
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, group, axis=2) for x in (key, value))
    scale = 1 / np.sqrt(query.shape[-1]) if scale is None else scale
    scores = np.einsum("btnd,bsnd->bnts", query, key) * scale
    sizes = np.einsum("btnd,bsnd->bnts", abs(query), abs(key)) * abs(scale)
    if bias is not None:
        scores, sizes = scores + np.asarray(bias, np.float64), sizes + abs(np.asarray(bias, np.float64))
    if score is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            scores = np.asarray(score(scores, *np.ix_(*map(np.arange, scores.shape))), np.float64)
        sizes = sizes + np.where(np.isfinite(scores) & (scores > MASKED), abs(scores), 0)
    seen = visible(scores.shape, query_lengths=query_lengths, **masks)
    scores = np.where(seen, scores, MASKED)
    with np.errstate(invalid="ignore"):
        largest = scores.max(-1, keepdims=True)
        exponentials = np.exp(scores - largest)
    total = exponentials.sum(-1, keepdims=True)
    p = exponentials / total
    out = np.einsum("bnts,bsnd->btnd", p, value)
    magnitude = np.einsum("bnts,bsnd->btnd", p, abs(value))
    moved = np.einsum("bnts,bsnd->btnd", p * np.where(seen, sizes, 0), abs(value))
    lse = (largest + np.log(total))[..., 0]
    if query_lengths is not None:
        rows = np.arange(query.shape[1])[None, :] < np.reshape(query_lengths, (-1, 1))
        out = out * rows[:, :, None, None]
    return out, lse, (magnitude, moved)


def error_bound(out, magnitudes, dtype, *, depth, keys):
    """The bound of docs/numerics.md, elementwise."""
    magnitude, moved = magnitudes
    eps = float(ml_dtypes.finfo(dtype).eps)
    sum_eps = eps if np.dtype(dtype) == np.float64 else float(np.finfo(np.float32).eps)
    # Scores are off by (depth + 4) eps of their size, which moves probabilities by as much and their sum, too.
    bound = 2 * (depth + 4) * sum_eps * moved + (2 * keys + 16) * sum_eps * magnitude
    return bound + 2 * eps * magnitude + eps * np.abs(out) + 1e-37


def assert_attention(actual, query, key, value, **options):
    """The result is within the bound."""
    out, _, magnitudes = exact(query, key, value, **options)
    bound = error_bound(out, magnitudes, np.asarray(query).dtype, depth=query.shape[-1], keys=key.shape[1])
    error = np.abs(np.asarray(actual, np.float64) - out)
    assert np.all(error <= bound), f"{np.nanmax(error / bound)} times the bound"


def row_major(*shape):
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def described(query, key, value, *, bias=None, mask=None, scale=None, causal=False, window=None, query_lengths=None,
              key_lengths=None, residual=False):  # fmt: skip
    """The Attention of dense arrays [B, T, N, H], [B, S, K, H], [B, S, K, Hv]."""
    (b, t, n, d), (s, heads, dv) = query.shape, value.shape[1:]
    group = n // heads

    def by_query(depth):
        batch, row, head, one = row_major(b, t, n, depth)
        return batch, group * head, head, row, one

    def by_key(depth):
        batch, row, head, one = row_major(b, s, heads, depth)
        return batch, head, row, one

    def array(x):
        if x is None:
            return None
        strides = [stride if size > 1 else 0 for stride, size in zip(row_major(*x.shape), x.shape, strict=True)]
        name = next(name for name, dtype in DTYPES.items() if np.dtype(dtype) == x.dtype) if x.dtype != bool else "pred"
        batch, head, row, column = strides
        return ScoreArray(dtype=name, elements=x.size, strides=(batch, group * head, head, row, column))

    name = next(name for name, dtype in DTYPES.items() if np.dtype(dtype) == query.dtype)
    return Attention(
        batch=b, heads=heads, group=group, queries=t, keys=s, depth=d, value_depth=dv, dtype=name,
        query=by_query(d), key=by_key(d), value=by_key(dv), out=by_query(dv),
        scale=1 / np.sqrt(d) if scale is None else scale, causal=causal, window=window, bias=array(bias),
        mask=array(mask), query_lengths=query_lengths is not None, key_lengths=key_lengths is not None,
        residual=residual,
    )  # fmt: skip


class AttentionRunner:
    """A compiled plan, ready to run."""

    def __init__(self, plan, machine=None):
        processor = processor_for(plan, machine or host.machine())
        code = _native.compile(build_module(plan), processor.cpu, processor.features, processor.tune)
        self.plan, self.entries = plan, linked(code, phase_symbols(plan))

    def __call__(self, *arrays, before=False, seed=0):
        """The results, flat."""
        plan = self.plan
        operands = [guarded_copy(x, before=before) for x in arrays]
        results = [array for array in plan.problem.arrays if array.role == "out"]
        outs = [Guarded(x.elements * np.dtype(DTYPES[x.dtype]).itemsize, before=before) for x in results]
        shared, local = (Guarded(size, before=before, align=LINE) for size in (plan.shared_bytes, plan.local_bytes))
        memory = [*operands, *outs, shared, local]
        buffers = (ctypes.c_void_p * (len(operands) + len(outs)))(*(x.address for x in (*operands, *outs)))
        order = np.random.default_rng(seed)
        for entry, tasks in zip(self.entries.phases, plan.tasks.values(), strict=True):
            for task in order.permutation(tasks):
                if plan.local_bytes <= POISONED_BYTES:
                    local.poison()
                entry(0, int(task), shared.address, local.address, buffers)
        assert all(x.untouched() for x in memory), "something was written outside of a buffer"
        return [out.bytes.view(DTYPES[x.dtype]).copy() for out, x in zip(outs, results, strict=True)]


def run(query, key, value, *, plan=None, isa=None, **options):
    """The result of a kernel, [B, T, N, Hv], at both ends of guarded memory."""
    machine = host.machine()
    problem = described(query, key, value, **options)
    plan = plan or choose_attention(problem, machine, machine.isa(isa) if isa else machine.isas[0])
    named = ("bias", "mask", "query_lengths", "key_lengths")
    extras = [np.asarray(options[name]) for name in named if options.get(name) is not None]
    runner = AttentionRunner(plan)
    results = [runner(query, key, value, *extras, before=before, seed=before) for before in (False, True)]
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
    shape = (*query.shape[:-1], value.shape[-1])
    out = results[0][0].reshape(shape)
    return (out, results[0][1].reshape(shape[0], shape[2], shape[1])) if options.get("residual") else out
