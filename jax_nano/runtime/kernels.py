"""Product -> kernel: once in a process, found on disk, or planned, composed and compiled. The one entry to all that.

On disk a kernel stands under its product, the processor's facts and the toolchain, so a process that finds it makes no
plan. Where plans were measured, a small entry of the product names the plan that won, whose kernel has an entry of its
own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial

from jax_nano import config
from jax_nano.ir.attention import Attention, Problem
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.ir.pipeline import Pipeline
from jax_nano.machine import host
from jax_nano.machine.host import machine_for, target
from jax_nano.machine.isa import Isa, Machine
from jax_nano.runtime import cache, keys, tuning, tuning_session
from jax_nano.runtime.compiler import CompilationFailed, compile_plan, reporting_failures
from jax_nano.runtime.dump import dump
from jax_nano.runtime.kernel import Kernel, Processor, processor_for
from jax_nano.runtime.log import logger, stopwatch
from jax_nano.runtime.once import Once
from jax_nano.schedule.attention.plan import AnyPlan
from jax_nano.schedule.choose import choose, ranked_plans

TURNED_OFF = "JAX_NANO=0"

# The kernels of this process, and what could not be compiled, by product and instruction set: programs have many equal
# products, and each is looked up once.
_kernels: Once[tuple[Problem, str], Kernel | CompilationFailed] = Once()
# What names a machine in the keys of all kernels, by identity: machines do not hash, and it takes longer than a key.
_facts: Once[int, tuple[Machine, str]] = Once()
_measuring = threading.Lock()  # products that are measured at once would disturb each other


def kernel_for(problem: Problem, target_name: str | None = None) -> Kernel:
    """The kernel of a product for a target, by default this machine's.

    Where JAX_NANO_AUTOTUNE=1 asks for that, its plans are measured when it is first wanted.

    Raises:
      UnsupportedDot: jax_nano has no kernel for it, could not compile it, or is turned off.
      ValueError: no machine has the target asked for.
    """
    if not config.enabled():
        raise UnsupportedDot(TURNED_OFF)
    place = Place.of(target_name)
    found = _kernels.get((problem, place.isa.name), lambda: _make_kernel(problem, place))
    if isinstance(found, CompilationFailed):
        raise CompilationFailed(*found.args)
    return found


def prepare(dots: Iterable[Problem]) -> None:
    """Begins to make the kernels of several products on other threads, while this one lowers the program.

    The pool works from the back, lowering from the front, so they rarely wait for each other. Does nothing where plans
    are measured, one by one, and where kernel_for will say why there are none. Raises nothing.
    """
    if not config.enabled() or config.switch("JAX_NANO_AUTOTUNE") or tuning_session.current():
        return
    try:
        isa = Place.of().isa.name
    except (UnsupportedDot, ValueError):
        return
    dots = [problem for problem in dict.fromkeys(dots) if (problem, isa) not in _kernels]
    others = host.threads() - 1
    if len(dots) < 2 or not others:
        return
    pool = ThreadPoolExecutor(others)
    with suppress(RuntimeError):  # no threads are to be had where the main thread has ended
        for problem in reversed(dots[1:]):
            pool.submit(kernel_for, problem)
    pool.shutdown(wait=False)  # its threads end when nothing is left to do


def tune_and_remember(problem: Problem, label: str = "") -> tuning.Tuned:
    """Measures the plans of a product, and has it computed by the fastest from now on: see remember_winner.

    Args:
      problem: the product.
      label: what stands beside a progress bar; none is shown where it is empty.

    Raises:
      UnsupportedDot: none of them compiles.
    """
    machine = host.machine()
    place = Place(machine, target(machine))
    with _measuring:
        result = tuning.tune(problem, place.machine, place.isa, label)
    logger.debug("measured: %s", result)
    remember_winner(problem, place, result.seconds[0][0])
    return result


@dataclass(frozen=True, eq=False)
class Place:
    """Where a product is computed."""

    machine: Machine
    isa: Isa

    @classmethod
    def of(cls, target_name: str | None = None) -> Place:
        """This machine, or another that has the target asked for.

        Raises:
          UnsupportedDot: there is no target for this processor.
          ValueError: no machine has that target.
        """
        machine = machine_for(target_name)
        return cls(machine, target(machine, target_name))

    @property
    def facts(self) -> str:
        """Names all that plans depend on."""
        return _facts.get(id(self.machine), lambda: (self.machine, machine_digest(self.machine)))[1]


def machine_digest(machine: Machine) -> str:
    """Names a machine by all that is known of it."""
    values = (getattr(machine, field.name) for field in fields(machine))
    return keys.digest(keys.describe(tuple(tuple(sorted(x.items())) if isinstance(x, dict) else x for x in values)))


def _make_kernel(problem: Problem, place: Place) -> Kernel | CompilationFailed:
    """The kernel of a product that this process does not have yet, or why it cannot be compiled.

    Raises:
      UnsupportedDot: there is no kernel for it.
    """
    if _is_to_be_tuned(problem, place):
        _tune_on_another_thread(problem)
    winner = recall_winner(problem, place)
    try:
        kernel = _load_or_compile(problem, place, winner)
    except CompilationFailed as reason:
        return CompilationFailed(*reason.args)  # without what its traceback holds on to
    dump(kernel)
    return kernel


def _is_to_be_tuned(problem: Problem, place: Place) -> bool:
    """Whether the environment or a session wants a product's plans measured, and they can be here."""
    session = tuning_session.current()
    if isinstance(problem, Pipeline):  # there is one plan of it
        return False
    if place.machine is not host.machine() or not (session or config.switch("JAX_NANO_AUTOTUNE")):
        return False
    has_winner = bool(recall_winner(problem, place))
    return session.wants(problem, has_winner=has_winner) if session else not has_winner


def _tune_on_another_thread(problem: Problem) -> None:
    """Measures on a thread of its own: this one is in the middle of lowering a program."""
    session = tuning_session.current()
    label = f"product {len(session.tuned) + 1}, {tuning.name_of(problem)}" if session else ""
    try:
        with ThreadPoolExecutor(max_workers=1) as worker:
            measured = worker.submit(tune_and_remember, problem, label)
    except RuntimeError:  # no threads are to be had where the main thread has ended
        return
    with suppress(UnsupportedDot), reporting_failures(problem):
        result = measured.result()
        if session:
            session.tuned[problem] = result


def _load_or_compile(problem: Problem, place: Place, winner: str) -> Kernel:
    made: Kernel | None = None

    def make() -> bytes:
        nonlocal made
        made = _on_another_stack(lambda: compile_plan(problem, *make_plan(problem, place, winner)))
        return made.to_bytes()

    kept = cache.fetch(entry_name(problem, place.isa), (problem, place.facts, place.isa.name, winner), make)
    if made is None:
        with suppress(ValueError):
            made = Kernel.from_bytes(problem, kept, partial(make_plan, problem, place, winner))
            logger.debug("found on disk: %s", made.name)
    if made is None:
        make()
    assert made is not None
    return made


def _on_another_stack(make: Callable[[], Kernel]) -> Kernel:
    """Plans and composes on a new thread, whose stack is shallow, and waits for it.

    CPython takes memory for frames from the system in pieces of 16 KiB, and gives one back as soon as it is empty: a
    loop whose calls cross from one piece into the next pays for two system calls each time. Rules of lowering run deep
    in JAX's frames. There the planning of digits.py's 11 products took 500 ms, and 95 ms elsewhere.
    """
    try:
        with ThreadPoolExecutor(max_workers=1) as worker:
            made = worker.submit(make)
    except RuntimeError:  # no threads are to be had where the main thread has ended
        return make()
    return made.result()


def make_plan(problem: Problem, place: Place, winner: str = "") -> tuple[AnyPlan, Processor]:
    """The plan of a product, and what to compile it for: the one that won, else the cost model's choice.

    Raises:
      UnsupportedDot: the target has no instruction for these types.
      CompilationFailed: planning failed otherwise.
    """
    with reporting_failures(problem), stopwatch() as watch:
        candidates = ranked_plans(problem, place.machine, place.isa, tuning.CANDIDATES) if winner else []
        plan = next((plan for plan in candidates if plan_digest(plan) == winner), None)
        if plan:
            plan = plan.replace(why=f"the fastest of {len(candidates)} plans measured")
        else:
            plan = choose(problem, place.machine, place.isa)
        result = plan, processor_for(plan, place.machine)
    logger.debug("planned in %s: %s", watch, plan)
    return result


def entry_name(problem: Problem, isa: Isa) -> str:
    """The beginning of the name of a kernel's entry: for the eye, as the key says all."""
    if isinstance(problem, Attention | Grouped | Gated | Pipeline):
        return f"nano_{problem.label}_{isa.name}"
    b, m, n, k = problem.sizes
    return f"nano_{problem.lhs}{problem.rhs}_{problem.out}_b{b}m{m}n{n}k{k}_{isa.name}"


# Winners of measurements.


def remember_winner(problem: Problem, place: Place, plan: AnyPlan) -> None:
    """Has a product computed by this plan from now on, in this process and in later ones on such a processor."""
    cache.put(cache.WINNER, (problem, place.facts, place.isa.name), plan_digest(plan).encode())
    _kernels.pop((problem, place.isa.name))


def recall_winner(problem: Problem, place: Place) -> str:
    """What names the plan that won for a product; empty where none did."""
    return (cache.get(cache.WINNER, (problem, place.facts, place.isa.name)) or b"").decode()


def plan_digest(plan: AnyPlan) -> str:
    """What tells a plan from the others of its product."""
    return keys.digest(keys.describe(plan))
