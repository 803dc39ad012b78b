"""Product -> object code, once per process or out of the cache; and what the custom call needs to know of it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from jax_nano import _native
from jax_nano.codegen.module import build_module, kernel_name
from jax_nano.ir.dot import Dot
from jax_nano.machine import host
from jax_nano.machine.host import machine_for, target
from jax_nano.machine.isa import Isa
from jax_nano.runtime import cache
from jax_nano.runtime.kernel import Kernel, Processor, processor_for
from jax_nano.schedule.choose import choose, ranked_plans
from jax_nano.schedule.plan import Plan

CANDIDATES = 8  # plans that autotuning measures for a product


def kernel_for(dot: Dot, target_name: str | None = None) -> Kernel:
    """The kernel of a product for a target, by default this machine's, compiled once per process.

    Raises:
      UnsupportedDot: jax_nano has no kernel for it.
      ValueError: no machine has the target asked for.
    """
    isa = target(machine_for(target_name), target_name).name
    with _locks.setdefault((dot, isa), threading.Lock()):  # who wants the same one waits; others compile beside it
        return _kernel(dot, isa)


_locks: dict[tuple[Dot, str], threading.Lock] = {}
# A forked process compiles for itself what threads, which it does not have, were about to compile.
os.register_at_fork(after_in_child=_locks.clear)


@functools.cache
def _kernel(dot: Dot, isa: str) -> Kernel:
    machine = machine_for(isa)
    plan = remembered_winner(dot, machine.isa(isa)) or choose(dot, machine, machine.isa(isa))
    return compiled(dot, plan, processor_for(plan, machine))


def begin(dots: Iterable[Dot]) -> None:
    """Begins to compile the kernels of several products on other threads, the last first, while this one goes on.

    Who takes them from the first on meets the others in the middle, and seldom waits.
    """
    dots = list(dict.fromkeys(dots))
    others = host.threads() - 1
    if len(dots) < 2 or not others:
        return
    pool = ThreadPoolExecutor(others)
    with suppress(RuntimeError):  # no threads are to be had where the main thread has ended
        for dot in reversed(dots[1:]):
            pool.submit(kernel_for, dot)
    pool.shutdown(wait=False)  # its threads end when nothing is left to do


def remember_winner(dot: Dot, isa: Isa, plan: Plan) -> None:
    """Has a product computed by this plan from now on, in this process and in later ones on such a processor."""
    machine = host.machine()
    named = cache.key((plan,)).encode()
    cache.put("nano_winner", ("winner", machine.name, machine.threads, isa.name, dot), named)
    _kernel.cache_clear()


def remembered_winner(dot: Dot, isa: Isa) -> Plan | None:
    """The plan that won for a product, if that is known and still a candidate."""
    machine = host.machine()
    named = cache.get("nano_winner", ("winner", machine.name, machine.threads, isa.name, dot))
    if named is None:
        return None
    candidates = ranked_plans(dot, machine, isa, CANDIDATES)
    winner = next((plan for plan in candidates if cache.key((plan,)).encode() == named), None)
    return winner and replace(winner, why=f"the fastest of {len(candidates)} plans measured")


def compiled(dot: Dot, plan: Plan, processor: Processor) -> Kernel:
    """The kernel of a product by a plan: out of the cache, or composed and compiled."""

    def compose() -> bytes:
        return _native.compile(build_module(plan), processor.cpu, processor.features, processor.tune)

    return Kernel(dot, plan, processor, cache.fetch(kernel_name(plan), (plan, processor), compose))
