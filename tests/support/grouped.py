"""Grouped products against NumPy in float64, and their kernels on memory whose every neighbour is forbidden."""

import ctypes
import itertools

import jax
import numpy as np
from kernel_runner import LINE, POISONED_BYTES, Guarded, guarded_copy, linked
from products import DTYPES

import jax_nano
from jax_nano import _native
from jax_nano.codegen.module import build_module, phase_symbols
from jax_nano.ir.axes import Operand
from jax_nano.ir.dtypes import dtype_name
from jax_nano.jaxpr.grouped.dimensions import grouped_of
from jax_nano.jaxpr.primitives import nano_region_p
from jax_nano.machine import host
from jax_nano.runtime.kernel import processor_for
from jax_nano.schedule.grouped.choose import choose_grouped

ROWS = jax.lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
TRANSPOSED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
SUMS = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])


def bounds(sizes, rows):
    """(first row, end) of each group: what is beyond the rows there are is cut off."""
    ends = np.minimum(np.cumsum(np.asarray(sizes, np.int64)), rows)
    return list(zip(np.concatenate([[0], ends[:-1]]), ends, strict=True))


def exact(lhs, rhs, sizes, numbers=ROWS):
    """(result, magnitude, terms) in float64: magnitudes are the sums of |a| |b|, terms how many there are in a sum."""
    a, b = np.asarray(lhs, np.float64), np.asarray(rhs, np.float64)
    groups = bounds(sizes, len(a))
    if numbers is SUMS:
        pairs = [(a[i:j].T, b[i:j]) for i, j in groups]
        return tuple(np.stack([f(x) @ f(y) for x, y in pairs]) for f in (np.asarray, np.abs)), len(a)
    b = b.swapaxes(1, 2) if numbers is TRANSPOSED else b
    results = []
    for f in (np.asarray, np.abs):
        out = np.zeros((len(a), b.shape[2]))
        for (i, j), matrix in zip(groups, b, strict=True):
            out[i:j] = f(a[i:j]) @ f(matrix)
        results.append(out)
    return tuple(results), a.shape[1]


def assert_grouped(actual, lhs, rhs, sizes, numbers=ROWS):
    """The result is within the bound of products, docs/numerics.md."""
    (out, magnitude), terms = exact(lhs, rhs, sizes, numbers)
    actual = np.asarray(actual)
    eps = np.finfo(np.float64 if np.asarray(lhs).dtype == np.float64 else np.float32).eps
    own = 2.0 ** -{"f64": 53, "f32": 24, "bf16": 8, "f16": 11}.get(dtype_name(actual.dtype), 60)
    bound = terms * eps * magnitude + own * np.abs(out) + 1e-30
    error = np.abs(actual.astype(np.float64) - out)
    assert actual.shape == out.shape
    assert np.all(error <= bound), f"{np.max(error / bound):.2f} times the bound"


def result_type(lhs, rhs, sizes, numbers, out=None):
    """The shape and type of the result, also of 64 bits."""
    with jax.enable_x64(new_val=True):
        return jax.eval_shape(
            lambda a, b, g: jax.lax.ragged_dot_general(a, b, g, numbers, preferred_element_type=out), lhs, rhs, sizes
        )


def described(lhs, rhs, sizes, numbers=ROWS, out=None):
    """The problem of arrays, row by row in memory."""
    a, b, g = (Operand.row_major(x.shape, dtype_name(x.dtype)) for x in (lhs, rhs, sizes))
    result = result_type(lhs, rhs, sizes, numbers, out)
    return grouped_of(numbers, a, b, g, Operand.row_major(result.shape, dtype_name(result.dtype)))


class GroupedRunner:
    """A compiled plan, ready to run."""

    def __init__(self, plan, machine=None):
        machine = machine or host.machine()
        processor = processor_for(plan, machine)
        code = _native.compile(build_module(plan), processor.cpu, processor.features, processor.tune)
        self.plan, self.entries = plan, linked(code, phase_symbols(plan))

    def __call__(self, *operands, before=False, seed=0):
        """The result, flat."""
        plan = self.plan
        *_, out = plan.problem.arrays
        dtype = np.dtype(DTYPES[out.dtype])
        arrays = [guarded_copy(np.asarray(x), before=before) for x in operands]
        result = Guarded(out.elements * dtype.itemsize, before=before)
        shared, local = (Guarded(size, before=before, align=LINE) for size in (plan.shared_bytes, plan.local_bytes))
        memory = [*arrays, result, shared, local]
        buffers = (ctypes.c_void_p * (len(arrays) + 1))(*(x.address for x in (*arrays, result)))
        order = np.random.default_rng(seed)
        phases = list(zip(self.entries.phases, plan.tasks.values(), strict=True))
        for number, (entry, tasks) in itertools.product(range(plan.rounds), phases):
            for task in order.permutation(tasks):
                if plan.local_bytes <= POISONED_BYTES:
                    local.poison()
                entry(number, int(task), shared.address, local.address, buffers)
        assert all(x.untouched() for x in memory), "something was written outside of a buffer"
        return result.bytes.view(dtype).copy()


def fused_problem(f, *operands):
    """The description of the one region of f's accelerated program; operands may be abstract."""
    program = jax.make_jaxpr(jax_nano.accelerate(f))(*operands)
    (region,) = (eqn.params["region"] for eqn in program.eqns if eqn.primitive is nano_region_p)
    return region.kernel.dot


def fused_kernel(f, *operands):
    """The one region of f's accelerated program: its description, and the kernel's operands in order."""
    program = jax.make_jaxpr(jax_nano.accelerate(f))(*operands)
    (eqn,) = (eqn for eqn in program.eqns if eqn.primitive is nano_region_p)
    values = dict(zip(program.jaxpr.invars, jax.tree.leaves(operands), strict=True))
    kernel = eqn.params["region"].kernel
    return kernel.dot, [values[eqn.invars[i]] for i in kernel.sources]


def run_fused(f, *operands):
    """What the kernel of f's region gives in guarded memory, flat: the same bits wherever arrays stand."""
    problem, arrays = fused_kernel(f, *operands)
    runner = GroupedRunner(choose_grouped(problem, host.machine(), host.target(host.machine())))
    first, second = (runner(*arrays, before=before, seed=before) for before in (False, True))
    assert np.array_equal(first.view(np.uint8), second.view(np.uint8))
    return first


def run(lhs, rhs, sizes, numbers=ROWS, *, isa=None, out=None):
    """A grouped product in guarded memory, which has the same bits wherever arrays stand and in whatever order."""
    machine = host.machine()
    problem = described(lhs, rhs, sizes, numbers, out)
    plan = choose_grouped(problem, machine, machine.isa(isa) if isa else host.target(machine))
    runner = GroupedRunner(plan)
    first, second = (runner(lhs, rhs, sizes, before=before, seed=before) for before in (False, True))
    assert np.array_equal(first.view(np.uint8), second.view(np.uint8))
    return first.reshape(result_type(lhs, rhs, sizes, numbers).shape)
