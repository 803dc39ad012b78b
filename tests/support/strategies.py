"""What Hypothesis draws: products, and plans for them."""

from dataclasses import replace

from hypothesis import strategies as st
from kernel_table import TARGETS
from products import Product

from jax_nano.ir.dot import Operand, row_major_strides
from jax_nano.machine import host
from jax_nano.schedule.candidates import instructions_for
from jax_nano.schedule.choose import choose

FLOATS = ("f32", "bf16", "f16")
BYTES = ("s8", "u8")
LARGE = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 17, 31, 33, 65])
SMALL = st.sampled_from([1, 2, 3, 5])
DIMENSIONS = st.one_of(st.tuples(LARGE), st.tuples(), st.tuples(LARGE, SMALL), st.tuples(SMALL, LARGE))
FEW = st.integers(1, 4)


@st.composite
def types(draw):
    """(lhs, rhs, out): every triple that has a kernel."""
    lhs, rhs = draw(st.sampled_from([("f64", "f64"), *((a, b) for a in FLOATS + BYTES for b in FLOATS + BYTES)]))
    if lhs == "f64":
        return "f64", "f64", "f64"
    return lhs, rhs, draw(st.sampled_from(("s32", "f32") if {lhs, rhs} <= set(BYTES) else FLOATS))


@st.composite
def products(draw, types=types()):  # noqa: B008  a strategy is a constant
    """Any number of batch, free and contracting dimensions, in any order, with and without gaps in memory."""
    lhs, rhs, out = draw(types)
    b, m, n, k = ([(group, i, size) for i, size in enumerate(draw(DIMENSIONS))] for group in "bmnk")
    a_axes, b_axes = draw(st.permutations(b + m + k)), draw(st.permutations(b + n + k))
    numbers = tuple(
        tuple(tuple(axes.index(axis) for axis in group) for axes in (a_axes, b_axes))
        for group in (draw(st.permutations(k)), draw(st.permutations(b)))
    )

    def operand(axes, dtype):
        shape = tuple(size for _, _, size in axes)
        gap = draw(st.sampled_from([1, 1, 1, 3]))
        return Operand(shape=shape, strides=tuple(gap * stride for stride in row_major_strides(shape)), dtype=dtype)

    return Product(lhs=operand(a_axes, lhs), rhs=operand(b_axes, rhs), dimension_numbers=numbers, out=out)


@st.composite
def chosen_plans(draw, product):
    """What the schedule chooses on a target of this machine, were it to have some number of threads."""
    machine = replace(host.machine(), threads=draw(st.sampled_from([1, 2, 8])))
    return choose(product.dot, machine, machine.isa(draw(st.sampled_from(TARGETS))))


@st.composite
def plans(draw, product):
    """A plan with other blocks, tasks and ways for the operands than the schedule would choose."""
    plan = draw(chosen_plans(product))
    if plan.channelwise:  # whose loops are others
        return plan
    choices = instructions_for(host.machine().isa(plan.isa), plan.dot)
    instruction = draw(st.sampled_from([instruction for _, instruction in choices if not instruction.tiles]))
    _, lanes, group = instruction.shape
    moved = instruction.lhs_offset != 0
    a_along_k, b_along_k, b_along_n = plan.k.lhs == 1, plan.k.rhs == 1, plan.n.rhs == 1
    inner = not moved and draw(st.booleans())
    lhs = ["unpacked"] * (a_along_k or group == 1) + ["rows"] * a_along_k + ["columns"]
    rhs = (
        ["unpacked"] * (b_along_n and not moved) + ["per_task"] + ["per_round"] * (not plan.outer and not plan.k_outer)
    )
    if inner:
        lhs, rhs = ["unpacked"] * a_along_k + ["rows"], ["unpacked"] * b_along_k + ["per_task"]
    plan = replace(
        plan, instruction=instruction, inner_product=inner, split_k=1, kc=plan.k.size, prefetch_lhs=False,
        mc=plan.m.size, mt=plan.m.size,
        lhs=draw(st.sampled_from(lhs)), rhs=draw(st.sampled_from(rhs)),
        unroll=draw(FEW), lhs_stationary=draw(st.booleans()), outer_per_task=draw(FEW), pack_panels=draw(FEW),
    )  # fmt: skip
    mr, nr = draw(FEW), draw(st.integers(1, 3)) * (1 if inner else lanes)
    mc = replace(plan, mr=mr, mc=plan.m.size, mt=plan.m.size).lhs_panel * draw(FEW)
    nb = nr * draw(st.integers(0, 2))
    mt, nt, nc = mc * draw(FEW), (nb or nr) * draw(FEW), nr * draw(FEW)
    asked = (plan.lhs == "unpacked" or (plan.lhs == "columns" and not a_along_k)) and not inner and not nb
    far = {"prefetch_lhs": asked and draw(st.booleans()), "prefetch_rhs": draw(st.booleans())}
    plan = replace(plan, mr=mr, nr=nr, mc=mc, mt=mt, nb=nb, nt=nt, nc=nc, **far)
    plan = replace(plan, kc=min(plan.k.size, plan.k_multiple * draw(FEW)))
    if plan.rhs == "per_round" or plan.k_blocks == 1 or draw(st.booleans()):
        return plan
    per_split = draw(st.integers(1, plan.k_blocks))
    return replace(plan, split_k=-(-plan.k_blocks // per_split))
