"""Masks by a function of places, and which blocks of queries and keys they hide whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_nano.ir.attention import MASKED
from jax_nano.ir.score_function import ScoreFunction
from jax_nano.jaxpr.attention.program_evaluation import run_program
from jax_nano.jaxpr.attention.score_reader import Score, Shape, read_score

Visible = Callable[..., Any]  # (batch, head, query, key) -> truth value


@partial(jax.tree_util.register_dataclass, data_fields=["blocks", "arrays"], meta_fields=["function", "shape", "size"])
@dataclass(frozen=True)
class BlockMask:
    """Pairs of queries and keys that see each other, and the blocks in which any do: made by jax_nano.block_mask.

    Attributes:
      blocks: truth values [B or 1, N or 1, blocks of queries, blocks of keys]; what has False is never computed.
      arrays: those that the function takes, each of which broadcasts to (B, N, T, S).
      function: of a truth value, and true where that is and a pair sees each other.
      shape: (B or 1, N or 1, T, S).
      size: queries and keys of a block.
    """

    blocks: Array
    arrays: tuple[Array, ...]
    function: ScoreFunction
    shape: Shape
    size: tuple[int, int]

    @property
    def skipped(self) -> float:
        """The share of blocks that are never computed."""
        return 1 - float(self.blocks.mean())

    def check(self, shape: Shape) -> None:
        """Checks that it is one for scores of a shape.

        Raises:
          ValueError: it is not.
        """
        pairs = zip(self.shape, shape, strict=True)
        fits = [mine == theirs or (mine == 1 and axis < 2) for axis, (mine, theirs) in enumerate(pairs)]
        if not all(fits):
            raise ValueError(
                f"block_mask is one for scores {list(self.shape)}, and these are {list(shape)} (batch, heads, queries, "
                "keys); make it with their sizes, 1 for a batch or heads that share it"
            )

    def hiding(self, score: Score | None) -> Score:
        """A score function, or none, with this mask."""

        def masked(x: Array, *place: Array) -> Array:
            x = score(x, *place) if score else x
            _, _, query, key = place
            given = [
                array[tuple(i if size > 1 else 0 for i, size in zip(place, array.shape, strict=True))]
                for array in self.arrays
            ]
            (seen,) = run_program(self.function.program, [jnp.ones((), bool), query, key, *given])
            return jnp.where(seen, x, jnp.asarray(MASKED, x.dtype))

        return masked


def read_mask(visible: Visible, shape: Shape, size: tuple[int, int]) -> BlockMask:
    """The mask of a function of places, with what it hides.

    Raises:
      TypeError: the function is not elementwise, or does not give truth values.
      Unfusable: there is no vector code for it.
    """

    def seen(truth: Array, *place: Array) -> Array:
        return truth & visible(*place)

    place = [jax.ShapeDtypeStruct((), jnp.int32)] * 4
    out = jax.eval_shape(visible, *place)
    if getattr(out, "dtype", None) != np.bool_:
        raise TypeError(f"a mask gives {out}; give a truth value for each pair")
    function, arrays = read_score(seen, shape, jnp.bool_)
    function = replace(function, name=getattr(visible, "__name__", "mask").replace("<lambda>", "mask"))
    blocks = visible_blocks(tuple(arrays), function, shape, size)
    return BlockMask(blocks, tuple(arrays), function, shape, size)


@partial(jax.jit, static_argnums=(1, 2, 3))
def visible_blocks(arrays: tuple[Array, ...], function: ScoreFunction, shape: Shape, size: tuple[int, int]) -> Array:
    """Which blocks have a pair that is seen, [B, N, blocks of queries, blocks of keys].

    They are found row of blocks by row of blocks: nothing has as many elements as there are pairs.
    """
    (b, n, t, s), (rows, columns) = shape, size
    count = -(-s // columns)
    keys = jnp.minimum(jnp.arange(count * columns, dtype=jnp.int32), s - 1)

    def taken(x: Array, queries: Array) -> Array:
        x = x.take(queries, axis=2) if x.shape[2] > 1 else x
        return x.take(keys, axis=3) if x.shape[3] > 1 else x

    def row(i: Array) -> Array:
        queries = jnp.minimum(i * rows + jnp.arange(rows, dtype=jnp.int32), t - 1)
        given = [jnp.ones((), bool), queries[:, None], keys[None, :], *(taken(x, queries) for x in arrays)]
        (seen,) = run_program(function.program, given)
        seen = jnp.broadcast_to(seen, (b, n, rows, count * columns))
        return seen.reshape(b, n, rows, count, columns).any((2, 4))

    return jnp.moveaxis(lax.map(row, jnp.arange(-(-t // rows), dtype=jnp.int32)), 0, 2)
