"""Gated layers of dense models, silu(x @ w1) * (x @ w3): one kernel with the bits of two, in guarded memory."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gated import TYPES, check, dense, operands, plan_of, run_plan
from grouped import fused_kernel
from oracle import kernels
from products import DTYPES

import jax_nano
from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import Dot, Epilogue, UnsupportedDot
from jax_nano.ir.gated import Gated
from jax_nano.jaxpr.program_reader import program_of
from jax_nano.machine import host
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.choose import choose, order_of_sums
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.tasks import LOCAL_BYTES, task_plans

MATMUL = ((1,), (0,)), ((), ())
quantize: Any = jax_nano.quantize
each_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)


@each_type
@pytest.mark.parametrize(("m", "n"), [(1, 48), (2, 5), (13, 33), (14, 32), (15, 80), (64, 31)], ids=str)
def test_both_sums_are_those_of_two_kernels(dtype, m, n):
    x, w, v = operands(m, 24, n, dtype=dtype)
    result = check(dense, x, w, v).reshape(m, n)
    expected = np.asarray(dense(x, w, v), np.float32)
    np.testing.assert_allclose(
        np.asarray(result, np.float32), expected, rtol=4e-2 if dtype is TYPES["bf16"] else 1e-4, atol=2e-2
    )


def every_way(problem):
    """A plan for each way that there is to find operands and to cut the sum, of many tasks."""
    machine = host.machine()
    found = {}
    for kernel in kernel_plans(problem.second, machine, host.target(machine)):
        for cut in (kernel, kernel.replace(kc=kernel.k_multiple)) if kernel.k_multiple < kernel.k.size else (kernel,):
            for plan in task_plans(cut, machine):
                if plan.split_k == 1 and (plan.lhs == "unpacked" or plan.mc >= plan.mt):
                    found[plan.lhs, plan.rhs, plan.k_blocks > 1] = plan
    return found


def test_every_way_to_compute_it():
    problem, arrays = fused_kernel(dense, *operands(37, 70, 101, dtype=jnp.bfloat16))
    plans = every_way(problem)
    assert {(lhs, rhs) for lhs, rhs, *_ in plans} >= {("rows", "per_task"), ("rows", "per_round")}
    results = {}
    for plan in plans.values():
        result = run_plan(GatedPlan.of(problem, plan), arrays)
        np.testing.assert_array_equal(results.setdefault(order_of_sums(plan), result), result)


def test_sums_cut_in_parts():
    x, w, v = operands(24, 4096, 300, dtype=jnp.bfloat16)
    problem, arrays = fused_kernel(dense, x, w, v)
    machine = host.machine()
    second = choose(problem.second, machine, host.target(machine))
    assert second.k_blocks > 1 or second.kc == 4096
    run_plan(plan_of(problem), arrays)


def test_it_is_one_kernel():
    arguments = operands(14, 64, 96)
    (report,) = jax_nano.inspect(jax_nano.accelerate(dense), *arguments)
    assert "two products of one A, gated; M 14, N 96, K 64" in str(report)
    with kernels(1):
        jax.block_until_ready(jax.jit(jax_nano.accelerate(dense))(*arguments))


ALIKE = {
    "bias": lambda x, w, v: jax.nn.gelu(x @ w + 1) * (x @ v - 2.0),
    "exchanged": lambda x, w, v: (x @ w) * jnp.tanh(x @ v),
    "batch": lambda x, w, v: jax.nn.silu(x.reshape(2, 7, -1) @ w) * (x.reshape(2, 7, -1) @ v),
    "transposed": lambda x, w, v: jax.nn.silu(x @ w.T) * (x @ v.T),
    "wider": lambda x, w, v: (jax.nn.silu(x @ w) * (x @ v)).astype(jnp.bfloat16),
    "residual": lambda x, w, v: jax.nn.silu(x @ w) * (x @ v) + x,
    "int8": lambda x, w, v: dense(x, quantize(w), quantize(v)),
}


@pytest.mark.parametrize("f", ALIKE.values(), ids=ALIKE)
def test_layers_that_are_gated(f):
    arguments = operands(14, 48, 48)
    with kernels(1):
        actual = jax.block_until_ready(jax.jit(jax_nano.accelerate(f))(*arguments))
    expected = np.asarray(f(*arguments), np.float32)
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=1e-2, atol=1e-2)


def used_twice(x, w, v):
    gate = jax.nn.silu(x @ w)
    return gate * (x @ v), gate


OTHERS = {
    "used_twice": used_twice,
    "other_rows": lambda x, w, v: jax.nn.silu(x @ w) * (2 * x @ v),
    "transposed": lambda x, w, v: jax.nn.silu(x @ w) * (x @ v.T),
    "types": lambda x, w, v: jax.nn.silu(x @ w) * (x @ v.astype(jnp.bfloat16).astype(jnp.float32)),
    "rows_of_h": lambda x, w, v: jax.nn.silu((x @ w)[:1]) * (x @ v),
    "moved": lambda x, w, v: jax.nn.silu(x @ w)[::-1] * (x @ v),
    "precision": lambda x, w, v: jax.nn.silu(x @ w) * jnp.dot(x, v, precision="highest"),
}


@pytest.mark.parametrize("f", OTHERS.values(), ids=OTHERS)
def test_what_is_not_gated_is_right(f):
    arguments = operands(14, 48, 48)
    reports = jax_nano.inspect(jax_nano.accelerate(f), *arguments)
    assert not any(isinstance(report.problem, Gated) for report in reports)
    for actual, expected in zip(
        *map(jax.tree.leaves, (jax.jit(jax_nano.accelerate(f))(*arguments), f(*arguments))), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


def test_gradients():
    x, w, v = operands(14, 24, 40)
    loss = lambda x, w, v: jnp.sum(jnp.sin(dense(x, w, v)))  # noqa: E731
    expected = jax.grad(loss, (0, 1, 2))(x, w, v)
    actual = jax.jit(jax.grad(jax_nano.accelerate(loss), (0, 1, 2)))(x, w, v)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_second_derivatives_vmap_and_remat():
    x, w, v = operands(14, 24, 40)
    f = lambda x: jnp.sum(jax.checkpoint(dense)(x, w, v))  # noqa: E731
    g = jax_nano.accelerate(f)
    direction = jnp.ones_like(x)
    expected, actual = (jax.jvp(jax.grad(each), (x,), (direction,))[1] for each in (f, g))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
    both = jnp.stack([w, 2 * w])
    mapped = jax.vmap(jax_nano.accelerate(dense), (None, 0, None))(x, both, v)
    np.testing.assert_allclose(mapped, [dense(x, w, v), dense(x, 2 * w, v)], rtol=1e-4, atol=1e-4)


def test_equal_layers_are_one_kernel():
    x, w, v = operands(14, 48, 48)
    f = lambda x: dense(dense(x, w, v), w, v)  # noqa: E731
    first, second = jax_nano.inspect(jax_nano.accelerate(f), x)
    assert first.kernel is second.kernel
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(x), f(x), rtol=1e-3, atol=1e-3)


def test_where_one_kernel_does_not_pay_there_are_two(monkeypatch):
    def refuse(*_):
        raise UnsupportedDot("nobody wants it")

    monkeypatch.setattr("jax_nano.schedule.choose.choose_gated", refuse)
    arguments = operands(14, 40, 72)
    first, second = jax_nano.inspect(jax_nano.accelerate(dense), *arguments)
    assert first.stopped == "two kernels, as nobody wants it"
    assert second.stopped == "used by the caller"
    actual = jax.jit(jax_nano.accelerate(dense))(*arguments)
    np.testing.assert_allclose(actual, dense(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_large_tasks_stay_within_a_threads_scratch(dtype):
    lhs, rhs = (Operand.row_major(shape, dtype) for shape in ((8192, 1024), (1024, 16384)))
    dot = Dot.of(lhs, rhs, MATMUL, dtype)
    (m,), (n,) = dot.m, dot.n
    by_gate = {
        "m": (replace(m, extras=(m.out,)),), "n": (replace(n, extras=(1,)),),
        "k": tuple(replace(axis, extras=(0,)) for axis in dot.k),
    }  # fmt: skip
    inputs = [jax.ShapeDtypeStruct((), DTYPES[dtype])] * 2
    jaxpr = jax.make_jaxpr(lambda x, h: x * h)(*inputs).jaxpr
    epilogue = Epilogue(program=program_of(jaxpr.invars, jaxpr.eqns, jaxpr.outvars), extras=((dtype, 8192 * 16384),))
    problem = Gated(first=dot, second=replace(dot, epilogue=epilogue, **by_gate), gate=0)
    machine = host.machine()
    assert choose(problem, machine, host.target(machine)).local_bytes <= LOCAL_BYTES
