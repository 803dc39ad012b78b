"""autotune: measures instead of trusting the cost model, for every product of a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax_nano.api.inspect import inspect
from jax_nano.runtime.kernels import tune_and_remember
from jax_nano.runtime.tuning import Tunings, name_of


def autotune(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Tunings:
    """Measures the best plans for every product in f, instead of trusting the cost model, and remembers the winners.

    Programs that are compiled afterwards, by this process and by others of this user on this processor, use them. The
    bits of a result may differ from those of the cost model's choice, within the same bound. JAX_NANO_AUTOTUNE=1 in the
    environment does the same for each product when it is first compiled, and `python -m jax_nano tune program.py` for
    all that a program runs. On a terminal, standard error has a progress bar for each product; elsewhere, a line.

    Args:
      f: a function, jitted or not, as for `inspect`; it is not run.
      *args: its arguments; a jax.ShapeDtypeStruct may stand for an array.
      **kwargs: likewise.

    Returns:
      What was measured, for each product that a kernel runs; printed, it is a table of what that gained.
    """
    problems = dict.fromkeys(
        report.problem for report in inspect(f, *args, **kwargs) if report.kernel and report.problem
    )
    labels = [f"product {i} of {len(problems)}, {name_of(dot)}" for i, dot in enumerate(problems, 1)]
    return Tunings(tune_and_remember(dot, label) for dot, label in zip(problems, labels, strict=True))
