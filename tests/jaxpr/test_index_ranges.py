"""Gathers that never go beyond the ends: found by the ranges of integers, and left alone wherever one may."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core.primitives import gather_p
from jax.lax import GatherScatterMode

from jax_nano.jaxpr.grouped.index_ranges import with_known_rows
from jax_nano.jaxpr.inline import inline_calls
from jax_nano.jaxpr.legality import gathering_body, inlinable

TOKENS, CHOICES = 12, 2
X = jnp.ones((TOKENS, 4))
EXPERTS = jnp.zeros(TOKENS * CHOICES, jnp.int32)


def mode_of_the_gather(rows):
    """How rows are taken of X after all passes, of the experts that tokens chose."""
    jaxpr = jax.make_jaxpr(lambda experts: jnp.take(X, rows(experts), axis=0))(EXPERTS).jaxpr
    for body in (inlinable, gathering_body):
        jaxpr = inline_calls(jaxpr, body)
    (mode,) = {eqn.params["mode"] for eqn in with_known_rows(jaxpr).eqns if eqn.primitive is gather_p}
    return mode


KNOWN: dict[str, Any] = {
    "divided": lambda experts: jnp.argsort(experts) // CHOICES,
    "unsigned": lambda experts: jnp.argsort(experts).astype(jnp.uint32) // CHOICES,
    "numbers": lambda _: jnp.arange(TOKENS),
    "remainder": lambda experts: jax.lax.rem(jnp.argsort(experts), TOKENS),
    "clipped": lambda experts: jnp.minimum(jnp.argsort(experts), TOKENS - 1),
    "shifted": lambda experts: jnp.argsort(experts)[:5] // CHOICES - 3 + 3,
    "moved": lambda experts: jnp.argsort(experts).reshape(TOKENS, CHOICES).T.reshape(-1) // CHOICES,
}
UNKNOWN: dict[str, Any] = {
    "given": lambda experts: experts,
    "permutation_of_more": jnp.argsort,
    "divided_by_less": lambda experts: (jnp.argsort(experts) + 1) // CHOICES,
    "below": lambda experts: jnp.argsort(experts) // CHOICES - TOKENS - 1,
    "scaled": lambda experts: jnp.argsort(experts) * 1,
    "wrapped": lambda experts: (jnp.argsort(experts) + 250).astype(jnp.uint8).astype(jnp.int32) // 32,
    "numbers_as_truth_values": lambda _: (jnp.arange(TOKENS) + 1000).astype(bool).astype(jnp.int32) - 1000,
    "chosen_by_truth_values": lambda _: jnp.where(jnp.full(TOKENS, -2).astype(bool), 100, jnp.arange(TOKENS)),
    "other_rests": lambda experts: jnp.where(
        (jnp.sign(jnp.argsort(experts)) != 1) & (jax.lax.rem(jnp.argsort(experts), CHOICES) != 1), 100, 1
    ),
    "divisor": lambda experts: jnp.argsort(experts) // jnp.maximum(experts, 1),
}


@pytest.mark.parametrize("rows", KNOWN.values(), ids=KNOWN)
def test_rows_that_are_known_to_exist_are_taken_without_a_look(rows):
    assert mode_of_the_gather(rows) == GatherScatterMode.PROMISE_IN_BOUNDS


@pytest.mark.parametrize("rows", UNKNOWN.values(), ids=UNKNOWN)
def test_rows_that_may_not_exist_are_filled_as_before(rows):
    assert mode_of_the_gather(rows) == GatherScatterMode.FILL_OR_DROP
