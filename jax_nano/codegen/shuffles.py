"""Elements that change places between vectors: transposes and interleaving."""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import vector

from jax_nano.codegen.index import Values
from jax_nano.codegen.registers import bitcast


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
    """Four rows interleaved: squares of 4 x 4 elements are brought together as words, then each is transposed.

    That is two shuffles, where LLVM makes eight of those that interleave rows in pairs.
    """
    kind = ir.VectorType(rows[0].type)
    n = kind.shape[0]
    upper, lower = (vector.shuffle(rows[i], rows[i + 1], list(range(2 * n))) for i in (0, 2))
    words = bitcast(vector.shuffle(upper, lower, list(range(4 * n))), n, ir.IntegerType.get_signless(32))
    squares = vector.shuffle(words, words, [row * n // 4 + square for square in range(n // 4) for row in range(4)])
    elements = bitcast(squares, 4 * n, kind.element_type)
    transposed = [16 * square + 4 * row + i for square in range(n // 4) for i in range(4) for row in range(4)]
    return vector.shuffle(elements, elements, transposed)


def interleave_registers(rows: Values) -> Values:
    """Rows that each fill a register, interleaved: as many registers as rows.

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
