"""The MLIR vocabulary kernels are written in: indices that fold, loops that carry, views, loads and stores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, scf, vector

from jax_nano.problem import BITS, WORD_STEPS, WORDS

if TYPE_CHECKING:
    from jax_nano.elementwise import Program

Index = int | ir.Value
Values = list[ir.Value]

FLOATS: dict[str, Callable[[], ir.Type]] = {
    "f64": ir.F64Type.get,
    "f32": ir.F32Type.get,
    "bf16": ir.BF16Type.get,
    "f16": ir.F16Type.get,
}


def element_type(dtype: str) -> ir.Type:
    """The MLIR type that holds elements of a short name's type in memory.

    Signs live in operations, not in types; so do the meanings of 8-bit floats. Two elements of 4 bits share a byte, or
    eight of them a word.
    """
    if dtype in WORDS:
        return ir.IntegerType.get_signless(32)
    return FLOATS[dtype]() if dtype in FLOATS else ir.IntegerType.get_signless(max(8, BITS[dtype]))


def index(i: Index) -> ir.Value:
    """An index as a value."""
    return arith.constant(ir.IndexType.get(), i) if isinstance(i, int) else i


def add(*terms: Index) -> Index:
    """The sum; constants are added up here."""
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


def select(condition: bool | ir.Value, a: Index, b: Index) -> Index:
    """One of two."""
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
    """The smaller one."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return arith.minsi(index(a), index(b))


def one_of(values: Sequence[int], i: Index) -> Index:
    """values[i]."""
    if isinstance(i, int):
        return values[i]
    chosen = index(values[-1])
    for number, value in enumerate(values[:-1]):
        chosen = arith.select(arith.cmpi(arith.CmpIPredicate.eq, i, index(number)), index(value), chosen)
    return chosen


def equal(a: Index, b: Index) -> bool | ir.Value:
    """Whether a = b, decided here where both are constants."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return arith.cmpi(arith.CmpIPredicate.eq, index(a), index(b))


def less(a: Index, b: Index) -> bool | ir.Value:
    """Whether a < b, decided here where both are constants."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return arith.cmpi(arith.CmpIPredicate.slt, index(a), index(b))


def both(a: bool | ir.Value, b: bool | ir.Value) -> bool | ir.Value:
    """Whether both conditions hold."""
    if isinstance(a, bool):
        return a and b
    if isinstance(b, bool):
        return b and a
    return arith.andi(a, b)


def negation(condition: bool | ir.Value) -> bool | ir.Value:
    """Whether a condition does not hold."""
    if isinstance(condition, bool):
        return not condition
    return arith.xori(condition, arith.constant(condition.type, 1))


@dataclass
class Loop:
    """What the body of a loop sees: the variable `i` and `carry`; it sets `next`. Then `results` are there."""

    i: Index
    carry: Values
    results: Values = field(default_factory=list)
    next: Values = field(default_factory=list)


@contextlib.contextmanager
def for_range(start: Index, stop: Index, step: int = 1, carry: Sequence[ir.Value] = ()) -> Iterator[Loop]:
    """Emits scf.for over [start, stop); closing the block writes the yield. One iteration is written without a loop."""
    if isinstance(start, int) and isinstance(stop, int) and start < stop <= start + step:
        loop = Loop(start, list(carry))
        yield loop
        loop.results = loop.next
        return
    op = scf.ForOp(index(start), index(stop), index(step), list(carry))
    loop = Loop(op.induction_variable, list(op.inner_iter_args), list(op.results))
    with ir.InsertionPoint(op.body):
        yield loop
        scf.yield_(loop.next)


def along(begin: Index, end: Index, size: int, step: int, body: Callable[[Index, int], None]) -> None:
    """Runs `body(i, step)` for the whole steps of [begin, end), and `body(i, rest)` where the end is a ragged `size`.

    `begin` is a multiple of `step`, and so is `end` unless it is `size`. Where `begin` is beyond `end`, nothing runs.
    """
    rest = size % step
    whole = minimum(end, size - rest)
    if not (isinstance(begin, int) and isinstance(whole, int) and begin >= whole):
        with for_range(begin, whole, step) as loop:
            body(loop.i, step)
    if rest:
        last = both(less(begin, size), equal(end, size))
        if last is not False:
            with when(last):
                body(size - rest, rest)


@contextlib.contextmanager
def when(condition: bool | ir.Value) -> Iterator[None]:
    """Emits scf.if. A condition known here must be True."""
    if condition is True:
        yield
        return
    op = scf.IfOp(condition)
    with ir.InsertionPoint(op.then_block):
        yield
        scf.yield_([])


def either(
    condition: bool | ir.Value, types: Sequence[ir.Type], then: Callable[[], Values], otherwise: Callable[[], Values]
) -> Values:
    """The values of one of two branches; only the one taken is written where the condition is known here."""
    if isinstance(condition, bool):
        return then() if condition else otherwise()
    op = scf.IfOp(condition, list(types), has_else=True)
    for region, branch in zip(op.regions, (then, otherwise), strict=True):
        with ir.InsertionPoint(region.blocks[0]):
            scf.yield_(branch())
    return list(op.results)


@dataclass(frozen=True)
class View:
    """A matrix in memory: element (i, j), of type `dtype`, stands at base[at + i * strides[0] + j * strides[1]]."""

    base: ir.Value
    at: Index
    strides: tuple[int, int]
    dtype: str
    component: tuple[str, int] | None = None  # a type, and which of each element's components in it is meant
    interleaved: int = 1  # rows that stand together, in a panel whose strides lead from the first of them to others'

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """Where element (i, j) stands in `base`."""
        return add(self.at, mul(i, self.strides[0]), mul(j, self.strides[1]))

    def block(self, i: Index = 0, j: Index = 0) -> View:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j))

    def moved(self, by: Index) -> View:
        """The matrix that begins `by` elements further in memory."""
        return replace(self, at=add(self.at, by))

    @property
    def transposed(self) -> View:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1])


@dataclass(frozen=True)
class Integers(View):
    """A matrix of integers, less the zero points that belong to the columns, row by row to `group` of its rows.

    Where rows share words, `strides[0]` leads from one row of words to the next. Rows are contiguous.
    """

    row: Index = 0  # which of the matrix's rows is row 0
    group: int = 1
    zeros: View | None = None

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """Where element (i, j) stands in `base`, or the word that it shares."""
        row = add(self.row, i)
        line = divmod_(row, WORD_STEPS)[0] if self.dtype in WORDS else row
        return add(self.at, mul(line, self.strides[0]), j)

    def block(self, i: Index = 0, j: Index = 0) -> Integers:
        """The matrix that begins at element (i, j)."""
        return replace(self, row=add(self.row, i), at=add(self.at, j), zeros=self.zeros and self.zeros.block(0, j))


@dataclass(frozen=True)
class Worked(View):
    """A matrix of what a program makes of each element of an array and of those at its place in other arrays.

    Along rows, strides of the others are 0 or those of the array; where the array has none of 1, any.
    """

    program: Program = field(kw_only=True)
    beside: tuple[View, ...] = field(kw_only=True)

    def block(self, i: Index = 0, j: Index = 0) -> Worked:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j), beside=tuple(view.block(i, j) for view in self.beside))

    @property
    def transposed(self) -> Worked:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1], beside=tuple(view.transposed for view in self.beside))


def scratch(buffer: ir.Value, byte_offset: int, count: int, dtype: str) -> ir.Value:
    """A piece of a byte buffer as `count` elements of a type."""
    return memref.view(ir.MemRefType.get([count], element_type(dtype)), buffer, index(byte_offset), [])


def splat(number: float, lanes: int, dtype: ir.Type) -> ir.Value:
    """A constant in every lane."""
    kind = ir.VectorType.get([lanes], dtype)
    integer = isinstance(dtype, ir.IntegerType)
    value = ir.IntegerAttr.get(dtype, int(number)) if integer else ir.FloatAttr.get(dtype, number)
    return arith.constant(kind, ir.DenseElementsAttr.get_splat(kind, value))


def zeros(lanes: int, dtype: ir.Type) -> ir.Value:
    """A vector of zeros."""
    return splat(0, lanes, dtype)


def first_lanes(count: Index, lanes: int) -> ir.Value:
    """A mask of the first `count` lanes: none or all of them, where a value is below 1 or above `lanes`."""
    kind = ir.VectorType.get([lanes], ir.IntegerType.get_signless(1))
    return vector.constant_mask(kind, [count]) if isinstance(count, int) else vector.create_mask(kind, [count])


def load(base: ir.Value, at: Index, lanes: int, count: Index | None = None) -> ir.Value:
    """`lanes` elements from `at` on; beyond the first `count` nothing is read, and zeros stand."""
    dtype = ir.MemRefType(base.type).element_type
    kind = ir.VectorType.get([lanes], dtype)
    if count is None or (isinstance(count, int) and count >= lanes):
        return vector.load(kind, base, [index(at)])
    return vector.maskedload(kind, base, [index(at)], first_lanes(count, lanes), zeros(lanes, dtype))


def load_halves(base: ir.Value, at: Index, lanes: int, count: int) -> ir.Value:
    """The same of unsigned 4-bit elements, two in a byte with the first in its lower half: each as a byte."""
    byte, odd = divmod_(at, 2)
    lower = half_bytes(base, byte, mul(odd, 4), max(1, lanes // 2), (count + 1) // 2)
    if lanes == 1:
        return lower
    upper = half_bytes(base, add(byte, odd), subtract(4, mul(odd, 4)), lanes // 2, count // 2)
    return interleave([lower, upper])


def half_bytes(base: ir.Value, at: Index, shift: Index, lanes: int, count: int) -> ir.Value:
    """Half of each byte from `at` on: the 4 bits that begin at bit `shift`."""
    byte, word = ir.IntegerType.get_signless(8), ir.IntegerType.get_signless(16)
    value = load(base, at, lanes, count) if count else zeros(lanes, byte)
    unit, units = (word, lanes // 2) if lanes % 2 == 0 else (byte, lanes)  # vector units shift words, not bytes
    by = broadcast(arith.index_cast(unit, index(shift)), units)
    moved = bitcast(arith.shrui(bitcast(value, units, unit), by), lanes, byte)
    return arith.andi(moved, splat(15, lanes, byte))


def store(value: ir.Value, base: ir.Value, at: Index, count: int | None = None) -> None:
    """The first `count` lanes (all by default) to `at` and on."""
    lanes = ir.VectorType(value.type).shape[0]
    if count is None or count >= lanes:
        vector.store(value, base, [index(at)])
    elif count == 1:  # LLVM 22 writes 32 bits for one lane that is truncated to fewer
        memref.store(vector.extract(value, [], [0]), base, [index(at)])
    else:
        vector.maskedstore(base, [index(at)], first_lanes(count, lanes), value)


def prefetch(base: ir.Value, at: Index, write: bool = False) -> None:
    """Asks for the line of an element that will be read or written: to write nearest, to read one cache further.

    Nothing happens where there is no such element.
    """
    memref.prefetch(base, [index(at)], write, 3 if write else 2, True)


def load_scalar(base: ir.Value, at: Index) -> ir.Value:
    """One element."""
    return memref.load(base, [index(at)])


def broadcast(scalar: ir.Value, lanes: int) -> ir.Value:
    """A scalar in every lane."""
    return vector.broadcast(ir.VectorType.get([lanes], scalar.type), scalar)


def bitcast(value: ir.Value, lanes: int, dtype: ir.Type) -> ir.Value:
    """The same bits as a vector of other elements."""
    kind = ir.VectorType.get([lanes], dtype)
    return value if value.type == kind else vector.bitcast(kind, value)


def transpose(rows: Values) -> Values:
    """Transposes n vectors of n lanes, n a power of two, in log2(n) rounds of two-operand shuffles."""
    n, distance = len(rows), 1
    while distance < n:
        low = [i if not i & distance else i - distance + n for i in range(n)]
        high = [i + distance if not i & distance else i + n for i in range(n)]
        result = list(rows)
        for i in range(n):
            if not i & distance:
                a, b = rows[i], rows[i + distance]
                result[i], result[i + distance] = vector.shuffle(a, b, low), vector.shuffle(a, b, high)
        rows, distance = result, distance * 2
    return rows


def interleave(rows: Values) -> ir.Value:
    """One vector of the rows' first elements, then their second ones, and so on; a power of two of rows."""
    if len(rows) == 1:
        return rows[0]
    n = ir.VectorType(rows[0].type).shape[0]
    if len(rows) == 4 and n % 4 == 0:
        return interleave_squares(rows)
    even, odd = interleave(rows[0::2]), interleave(rows[1::2])
    return vector.shuffle(even, odd, [i // 2 + i % 2 * n for i in range(2 * n)])


def interleave_squares(rows: Values) -> ir.Value:
    """The same of four rows of bytes: squares of 4 x 4 are brought together as words, then each is transposed.

    That is two shuffles, where LLVM makes eight of those that interleave rows in pairs.
    """
    kind = ir.VectorType(rows[0].type)
    n = kind.shape[0]
    upper, lower = (vector.shuffle(rows[i], rows[i + 1], list(range(2 * n))) for i in (0, 2))
    words = bitcast(vector.shuffle(upper, lower, list(range(4 * n))), n, ir.IntegerType.get_signless(32))
    squares = vector.shuffle(words, words, [row * n // 4 + square for square in range(n // 4) for row in range(4)])
    elements = bitcast(squares, 4 * n, kind.element_type)
    turned = [16 * square + 4 * row + i for square in range(n // 4) for i in range(4) for row in range(4)]
    return vector.shuffle(elements, elements, turned)


def interleave_registers(rows: Values) -> Values:
    """The same of rows that each fill a register: as many registers as rows.

    Elements are interleaved within 128 bits, which vector units do at once, then pieces of 128 bits are.
    """
    kind = ir.VectorType(rows[0].type)
    element = kind.element_type
    piece = 128 // (element.width if isinstance(element, ir.IntegerType) else ir.FloatType(element).width)
    return weave(weave(rows, 1, piece), piece, kind.shape[0])


def weave(rows: Values, unit: int, span: int) -> Values:
    """Interleaves rows by units of elements within each span of them; a power of two of rows, and of all numbers.

    Of two rows, the first result has what the first halves of spans give, the second what the second halves do.
    """
    if len(rows) == 1:
        return rows
    elements = ir.VectorType(rows[0].type).shape[0]
    halves = [
        [
            row * elements + begin + at * unit + i
            for begin in range(half * span // 2, elements, span)
            for at in range(span // 2 // unit)
            for row in (0, 1)
            for i in range(unit)
        ]
        for half in (0, 1)
    ]
    pairs = zip(weave(rows[0::2], unit, span), weave(rows[1::2], unit, span), strict=True)
    return [vector.shuffle(a, b, half) for a, b in pairs for half in halves]
