"""Any product, by any plan: dimensions in any order, operands in any layout."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import Runner
from kernel_table import TARGETS, TYPES
from products import Product, matrix
from strategies import chosen_plans, plans, products

from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.machine import host
from jax_nano.schedule.choose import choose

SLOW = settings(deadline=None, max_examples=120)


@SLOW
@given(products(), st.data())
def test_chosen_plans(product, data):
    operands = product.operands()
    product.check(Runner(data.draw(chosen_plans(product))).at_both_ends(*operands), *operands)


@SLOW
@given(products(), st.data())
def test_any_plan(product, data):
    operands = product.operands()
    product.check(Runner(data.draw(plans(product))).at_both_ends(*operands), *operands)


SIZES = ((1, 37, 29), (37, 1, 29), (1, 1, 131), (37, 41, 1), (17, 67, 131), (1, 300, 2500), (3, 3, 9001))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("a", ["rows", "columns"])
@pytest.mark.parametrize("b", ["rows", "columns"])
def test_vectors_and_matrices(types, target, a, b):
    """nn, nt, tn and tt products, each side as short as one, and sums that are made in parts."""
    machine = host.machine()
    lhs, rhs, out = types
    for m, n, k in SIZES:
        product = Product(lhs=matrix(m, k, a, lhs), rhs=matrix(k, n, b, rhs), out=out)
        operands = product.operands()
        plan = choose(product.dot, machine, machine.isa(target))
        product.check(Runner(plan)(*operands), *operands)


@pytest.mark.parametrize("lhs, rhs", [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0))])
def test_nothing_to_multiply(lhs, rhs):
    with pytest.raises(UnsupportedDot) as error:
        Dot.of(Operand.row_major(lhs, "f32"), Operand.row_major(rhs, "f32"), (((1,), (0,)), ((), ())), "f32")
    assert str(error.value) == "a dimension is 0: there is nothing to multiply"
