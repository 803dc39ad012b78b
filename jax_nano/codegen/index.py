"""Indices that fold: arithmetic on integers known here, or on values in the program."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

Index = int | ir.Value
Condition = bool | ir.Value  # decided while the kernel is composed, or by the kernel
Values = list[ir.Value]


def index(i: Index) -> ir.Value:
    """An index as a value."""
    return arith.constant(ir.IndexType.get(), i) if isinstance(i, int) else i


def add(*terms: Index) -> Index:
    """The sum of all terms; the constants among them are added up here."""
    constant = sum(t for t in terms if isinstance(t, int))
    total: Index = 0
    for term in terms:
        if not isinstance(term, int):
            total = term if isinstance(total, int) else arith.addi(total, term)
    if isinstance(total, int):
        return constant
    return arith.addi(total, index(constant)) if constant else total


def mul(a: Index, b: int) -> Index:
    """a times a constant."""
    if b == 0:
        return 0
    if isinstance(a, int):
        return a * b
    return a if b == 1 else arith.muli(a, index(b))


def times(a: Index, b: Index) -> Index:
    """a * b, both of which may be values."""
    if isinstance(b, int):
        return mul(a, b)
    return mul(b, a) if isinstance(a, int) else arith.muli(a, b)


def select(condition: Condition, a: Index, b: Index) -> Index:
    """a where the condition holds, else b."""
    if isinstance(condition, bool):
        return a if condition else b
    return arith.select(condition, index(a), index(b))


def subtract(a: Index, b: Index) -> Index:
    """a - b."""
    if isinstance(b, int):
        return add(a, -b)
    return arith.subi(index(a), b)


def divmod_(a: Index, b: int) -> tuple[Index, Index]:
    """(a // b, a % b) of a non-negative index and a constant."""
    if isinstance(a, int):
        return divmod(a, b)
    if b == 1:
        return a, 0
    return arith.divui(a, index(b)), arith.remui(a, index(b))


def minimum(a: Index, b: Index) -> Index:
    """min(a, b)."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return arith.minsi(index(a), index(b))


def maximum(a: Index, b: Index) -> Index:
    """max(a, b)."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return arith.maxsi(index(a), index(b))


def one_of(values: Sequence[int], i: Index) -> Index:
    """values[i], by comparisons: constants need no memory."""
    if isinstance(i, int):
        return values[i]
    chosen = index(values[-1])
    for number, value in enumerate(values[:-1]):
        chosen = arith.select(arith.cmpi(arith.CmpIPredicate.eq, i, index(number)), index(value), chosen)
    return chosen


def equal(a: Index, b: Index) -> Condition:
    """a == b, decided here where both are constants."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return arith.cmpi(arith.CmpIPredicate.eq, index(a), index(b))


def less(a: Index, b: Index) -> Condition:
    """a < b, decided here where both are constants."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return arith.cmpi(arith.CmpIPredicate.slt, index(a), index(b))


def within(a: Index, size: int) -> Condition:
    """0 <= a < size, by one comparison of numbers without sign."""
    if isinstance(a, int) or size <= 0:
        return isinstance(a, int) and 0 <= a < size
    return arith.cmpi(arith.CmpIPredicate.ult, a, index(size))


def both(a: Condition, b: Condition) -> Condition:
    """a and b."""
    if isinstance(a, bool):
        return a and b
    if isinstance(b, bool):
        return b and a
    return arith.andi(a, b)


def any_of(*conditions: Condition) -> Condition:
    """At least one of the conditions holds."""
    total: Condition = False
    for condition in conditions:
        if total is True or condition is True:
            return True
        if isinstance(total, bool):
            total = condition
        elif not isinstance(condition, bool):
            total = arith.ori(total, condition)
    return total


def unequal(a: Index, b: Index) -> Condition:
    """a != b, decided here where both are constants."""
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    return arith.cmpi(arith.CmpIPredicate.ne, index(a), index(b))


def negation(condition: Condition) -> Condition:
    """not condition."""
    if isinstance(condition, bool):
        return not condition
    return arith.xori(condition, arith.constant(condition.type, 1))
