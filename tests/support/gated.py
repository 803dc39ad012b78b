"""Gated products, and their kernels in guarded memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from grouped import GroupedRunner, fused_kernel
from jax import lax
from oracle import normal

from jax_nano.ir.gated import Gated
from jax_nano.machine import host
from jax_nano.schedule.choose import choose
from jax_nano.schedule.gated.plan import GatedPlan

TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def dense(x, w, v):
    """The gated layer of dense models."""
    return jax.nn.silu(x @ jnp.asarray(w)) * (x @ jnp.asarray(v))


def grouped(x, w, v, sizes):
    """That of experts, whose rows follow one another."""
    return jax.nn.silu(lax.ragged_dot(x, jnp.asarray(w), sizes)) * lax.ragged_dot(x, jnp.asarray(v), sizes)


def operands(m, k, n, *, groups=(), dtype=jnp.float32):
    """x, w and v."""
    shapes = (m, k), (*groups, k, n), (*groups, k, n)
    return [jnp.asarray(normal(*shape, seed=i), dtype) for i, shape in enumerate(shapes)]


def apart(problem, arrays, run):
    """What the kernels of both products give, one after the other.

    Args:
      problem: the gated product.
      arrays: its kernel's operands.
      run: gives the result of a product and its operands.
    """
    first, _ = problem.arrays_of_each([*arrays, None], None)
    held = run(problem.first, first[:-1])
    _, second = problem.arrays_of_each([*arrays, None], held)
    return run(problem.second, second[:-1])


def run_plan(plan, arrays):
    """What a plan's kernel gives in guarded memory, flat: the same bits wherever arrays stand."""
    runner = GroupedRunner(plan)
    first, second = (runner(*arrays, before=before, seed=before) for before in (False, True))
    assert np.array_equal(first.view(np.uint8), second.view(np.uint8))
    return first


def plan_of(problem):
    """The plan of any product, a gated one's also where two kernels take less time."""
    machine = host.machine()
    isa = host.target(machine)
    if isinstance(problem, Gated):
        second: Any = choose(problem.second, machine, isa)
        return GatedPlan.of(problem, second)
    return choose(problem, machine, isa)


def check(f, *arguments):
    """Both sums of f's kernel have the bits that they have in kernels of their own; gives the result."""
    problem, arrays = fused_kernel(f, *arguments)
    assert isinstance(problem, Gated)
    result = run_plan(plan_of(problem), arrays)
    expected = apart(problem, arrays, lambda product, given: GroupedRunner(plan_of(product))(*given))
    np.testing.assert_array_equal(result.view(np.uint8), expected.view(np.uint8))
    return result
