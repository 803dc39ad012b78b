"""How a time is taken: in several turns, each of many calls, different functions in turn. The best turn counts."""

import time
from collections.abc import Callable, Sequence

from jax_nano.runtime.tuning import mean_seconds

TURN_SECONDS = 0.02  # calls of one function in a row: long against the clock's grain, short against the machine's moods
REST_SECONDS = 0.12  # after a turn: threads of a BLAS spin for a while, and would slow the next function down
WAKING_SECONDS = 0.02  # of calls that are not timed: after a rest, threads and virtual processors come back one by one


def best_of(functions: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """The best seconds a call of each function. Functions return when their work is done."""
    return [min(found) for found in turns_of(functions, turns)]


def turns_of(functions: Sequence[Callable[[], object]], turns: int) -> list[list[float]]:
    """The seconds a call of each function, for each of its turns.

    All take a turn before any takes its next, so that a slow moment of the machine hits them alike.
    """
    for function in functions:
        function()
    calls = [max(1, round(TURN_SECONDS / min(mean_seconds(function, 1) for _ in range(3)))) for function in functions]
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(turns):
        for i, function in enumerate(functions):
            time.sleep(REST_SECONDS)
            mean_seconds(function, max(1, round(calls[i] * WAKING_SECONDS / TURN_SECONDS)))
            found[i].append(mean_seconds(function, calls[i]))
    return found
