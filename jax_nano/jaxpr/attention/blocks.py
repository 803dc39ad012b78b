"""Blocks of queries and keys, as the gradients of attention go through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jax_nano.ir.attention import MASKED
from jax_nano.ir.attention_spec import AttentionSpec, hides_rows
from jax_nano.jaxpr.attention.program import visible

BLOCK = 512  # queries and keys whose scores are there at a time, at most; half of that where masks skip blocks


@dataclass(frozen=True)
class Blocks:
    """Blocks of queries and keys: arrays are padded to whole ones, and those of rows lie [B, K, G, T, ...].

    Padding is zeros or, where it `repeats`, more of the last query or key: a score function is defined for that.
    """

    query_count: int
    key_count: int
    query_size: int
    key_size: int
    repeats: bool = False

    @classmethod
    def of(cls, spec: AttentionSpec, query: Array, key: Array) -> Blocks:
        """The blocks for arrays [B, T, N, H] and [B, S, K, H]."""
        most = BLOCK // 2 if spec.causal or spec.window else BLOCK
        t, s = query.shape[1], key.shape[1]
        return cls(t, s, min(t, most), min(s, most), repeats=spec.score is not None)

    def has_blind_rows(self, spec: AttentionSpec) -> bool:
        """Whether rows may be without keys, and average all values."""
        hidden = hides_rows(spec.causal, spec.window, self.query_count, self.key_count)
        hides = spec.score is not None and spec.score.may_hide(MASKED)
        return spec.mask or spec.key_lengths or hidden or hides

    def pairs(self, spec: AttentionSpec) -> tuple[Array, Array]:
        """The pairs of blocks that are visited, in order: the numbers of their queries' blocks, and of their keys'.

        They are made by operations, as a constant would have to be handed to the program.
        """
        rows, columns = (-(-n // size) for n, size in self.sizes)
        parts: list[tuple[Array, Array]] = []
        for j in range(columns):
            seen = [i for i in range(rows) if self.has_blind_rows(spec) or self.sees(spec, i, j)]
            if seen:
                numbers = lax.iota(jnp.int32, len(seen)) + seen[0]
                parts.append((numbers, lax.full_like(numbers, j)))
        if not parts:
            return jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
        first, second = (lax.concatenate(part, 0) for part in zip(*parts, strict=True))
        return first, second

    def sees(self, spec: AttentionSpec, i: int, j: int) -> bool:
        """Whether a pair of blocks has a pair that no mask by place hides."""
        first, last = i * self.query_size, min((i + 1) * self.query_size, self.query_count) - 1
        low, high = j * self.key_size, min((j + 1) * self.key_size, self.key_count) - 1
        ruled_out = spec.causal and low > last
        if spec.window:
            ruled_out |= high < first - spec.window[0] or low > last + spec.window[1]
        return not ruled_out

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(queries, a block of them), (keys, a block of them)."""
        return (self.query_count, self.query_size), (self.key_count, self.key_size)

    def _padded(self, x: Array, axis: int, size: int) -> Array:
        rest = -x.shape[axis] % size
        if not rest:
            return x
        mode = "edge" if self.repeats else "constant"
        return jnp.pad(x, [(0, rest if i == axis else 0) for i in range(x.ndim)], mode=mode)

    def queries(self, x: Array, heads: int) -> Array:
        """[B, T, N, H] as [B, K, G, T, H], padded."""
        b, t, n, h = x.shape
        return self._padded(x.reshape(b, t, heads, n // heads, h).transpose(0, 2, 3, 1, 4), 3, self.query_size)

    def queries_back(self, x: Array, like: Array) -> Array:
        """What `queries` was of an array, in its type."""
        b, t, n, h = like.shape
        return x[:, :, :, :t].transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(like.dtype)

    def rows(self, x: Array, heads: int) -> Array:
        """[B, N, T] as [B, K, G, T], padded."""
        b, n, t = x.shape
        return self._padded(x.reshape(b, heads, n // heads, t), 3, self.query_size)

    def keys(self, x: Array) -> Array:
        """[B, S, K, H] as [B, K, S, H], padded."""
        return self._padded(x.transpose(0, 2, 1, 3), 2, self.key_size)

    def keys_back(self, x: Array, like: Array) -> Array:
        """What `keys` was of an array, in its type."""
        return x[:, :, : self.key_count].transpose(0, 2, 1, 3).astype(like.dtype)

    def scores_back(self, x: Array, like: Array) -> Array:
        """A sum of scores without its padding, in the type of an array of its shape."""
        return x[tuple(slice(0, n) for n in like.shape)].astype(like.dtype)

    def query_block(self, x: Array, i: Array) -> Array:
        """A block of an array of rows."""
        return lax.dynamic_slice_in_dim(x, i * self.query_size, self.query_size, 3)

    def key_block(self, x: Array, j: Array) -> Array:
        """A block of an array of keys."""
        return lax.dynamic_slice_in_dim(x, j * self.key_size, self.key_size, 2)

    def add_query(self, total: Array, x: Array, i: Array) -> Array:
        """Adds to a block of rows."""
        return lax.dynamic_update_slice_in_dim(total, self.query_block(total, i) + x, i * self.query_size, 3)

    def add_key(self, total: Array, x: Array, j: Array) -> Array:
        """Adds to a block of keys."""
        return lax.dynamic_update_slice_in_dim(total, self.key_block(total, j) + x, j * self.key_size, 2)

    def score_block(self, x: Array, i: Array, j: Array) -> Array:
        """A block of an array that broadcasts to [B, N, T, S]."""
        for axis, (number, size) in ((2, (i, self.query_size)), (3, (j, self.key_size))):
            if x.shape[axis] > 1:
                x = lax.dynamic_slice_in_dim(self._padded(x, axis, size), number * size, size, axis)
        return x

    def grouped(self, x: Array, heads: int) -> Array:
        """[B, N, T, S], any of them 1, as [B, K, G, T, S]."""
        b, n, t, s = (1,) * (4 - x.ndim) + x.shape
        return x.reshape(b, heads if n > 1 else 1, n // heads if n > 1 else 1, t, s)

    def score_zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """What `add_scores` begins with, for a sum that broadcasts to [B, N, T, S]."""
        (_, rows), (_, columns) = self.sizes
        padded = [
            *shape[:2],
            *(n + -n % size if n > 1 else 1 for n, size in zip(shape[2:], (rows, columns), strict=True)),
        ]
        return jnp.zeros(padded, dtype)

    def add_scores(self, total: Array, x: Array, i: Array, j: Array) -> Array:
        """Adds a block's part of what broadcasts to [B, N, T, S]."""
        starts = [jnp.zeros((), i.dtype)] * 4
        for axis, start in ((2, i * self.query_size), (3, j * self.key_size)):
            starts[axis] = start if total.shape[axis] > 1 else starts[axis]
        return lax.dynamic_update_slice(total, lax.dynamic_slice(total, starts, x.shape) + x, starts)

    def numbers(self, i: Array, j: Array) -> tuple[Array, Array]:
        """The numbers of a block's queries and keys."""
        return i * self.query_size + jnp.arange(self.query_size), j * self.key_size + jnp.arange(self.key_size)

    def places(self, i: Array, j: Array) -> tuple[Array, Array]:
        """The numbers of what a block's queries and keys are, or repeat."""
        rows, columns = self.numbers(i, j)
        return jnp.minimum(rows, self.query_count - 1), jnp.minimum(columns, self.key_count - 1)

    def inside(self, i: Array, j: Array) -> Array:
        """Which pairs of a block are no padding."""
        rows, columns = self.numbers(i, j)
        return (rows[:, None] < self.query_count) & (columns[None, :] < self.key_count)

    def is_visited(self, size: tuple[int, int], table: Array, i: Array, j: Array) -> Array:
        """Whether a block mask, of blocks of a size, has any pair of a block that is visited."""
        (_, rows), (_, columns) = self.sizes
        table = table.any((0, 1))
        for axis, (number, mine, theirs) in enumerate(((i, rows, size[0]), (j, columns, size[1]))):
            place = jnp.arange(table.shape[axis])
            first, end = number * mine // theirs, -(-(number + 1) * mine // theirs)
            inside = (place >= first) & (place < end)
            table = table & (inside[:, None] if axis == 0 else inside[None, :])
        return table.any()

    def visible(self, spec: AttentionSpec, named: dict[str, Array], i: Array, j: Array) -> Array | None:
        """Which pairs of a block are not masked; None where all are not."""
        seen = visible(spec, *self.numbers(i, j), named)
        if all(n % size == 0 for n, size in self.sizes):
            return seen
        return self.inside(i, j) if seen is None else self.inside(i, j) & seen
