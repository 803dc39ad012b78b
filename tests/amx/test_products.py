"""Each tile product against its definition, bit by bit."""

import itertools

import numpy as np
import pytest

from .build import assemble
from .config import tile_config
from .model import TYPES, product
from .selection import those_that_run

PAIRS = those_that_run(["tdpbf16ps", "tdpfp16ps"])
BYTES = those_that_run(["tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"])
EDGES = [1, 2, 3, 7, 15, 16]

# void NAME(config, a, b, c): c += a @ b, with rows of 64 bytes in memory.
PROGRAM = """
.globl {name}
{name}:
    ldtilecfg (%rdi)
    mov $64, %eax
    tileloadd (%rsi,%rax), %tmm1
    tileloadd (%rdx,%rax), %tmm2
    tileloadd (%rcx,%rax), %tmm0
    {name} %tmm2, %tmm1, %tmm0
    tilestored %tmm0, (%rcx,%rax)
    tilerelease
    ret
"""


@pytest.fixture
def run(amx, name):
    """The product `name` of arrays as in model.py, by the instruction."""
    program = assemble(PROGRAM.format(name=name))[name]

    def run(a, b, c):
        m, k, n = a.shape[0], a.shape[1], c.shape[1]
        config = tile_config({0: (m, 4 * n), 1: (m, 4 * k), 2: (k, 4 * n)})
        rows = rows_of(c)
        program(config, rows_of(a).ctypes, rows_of(b).ctypes, rows.ctypes)
        result = rows[:m, : 4 * n].copy().view(c.dtype)
        assert np.array_equal(rows, rows_of(result)), "stored beyond the tile"
        return result

    return run


def rows_of(numbers):
    """The rows of a tile in memory, with something else beyond them."""
    rows = np.full((16, 64), 0xEE, np.uint8)
    m, n = numbers.shape[:2]
    rows[:m, : 4 * n] = np.ascontiguousarray(numbers).view(np.uint8).reshape(m, 4 * n)
    return rows


def assert_same_bits(actual, expected):
    """Any NaN is as good as another."""
    assert actual.dtype == expected.dtype
    if actual.dtype == np.float32:
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(actual), nan)
        actual, expected = actual[~nan].view(np.uint32), expected[~nan].view(np.uint32)
    np.testing.assert_array_equal(actual, expected)


def random_bits(rng, dtype, shape):
    return rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_exact_in_every_shape(run, name):
    rng = np.random.default_rng(1)
    for m, k, n in itertools.product(EDGES, repeat=3):
        a, b = (
            random_bits(rng, dtype, shape) for dtype, shape in zip(TYPES[name], [(m, k, 4), (k, n, 4)], strict=True)
        )
        c = random_bits(rng, np.int32, (m, n))
        assert_same_bits(run(a, b, c), product(name, a, b, c))


@pytest.mark.parametrize("name", BYTES)
def test_bytes_at_their_extremes_wrap(run, name):
    extremes = [0x00, 0x7F, 0x80, 0xFF]
    for byte_a, byte_b, start in itertools.product(extremes, extremes, [0, 2**31 - 1, -(2**31)]):
        a, b = (
            np.full((16, 16, 4), byte, np.uint8).view(type_)
            for byte, type_ in zip((byte_a, byte_b), TYPES[name], strict=True)
        )
        c = np.full((16, 16), start, np.int32)
        assert_same_bits(run(a, b, c), product(name, a, b, c))


# Powers of two: (center, spread) of the factors. The accumulator's are around the products'.
MAGNITUDES = {
    "tdpbf16ps": {"around one": (0, 2), "denormal": (-63, 6), "far apart": (0, 60)},
    "tdpfp16ps": {"around one": (0, 2), "denormal": (-15, 8), "far apart": (-4, 16)},
}


def random_numbers(rng, name, shape, magnitude, *, product=False):
    """Factors of the product `name`, or accumulators."""
    dtype = np.float32 if product else TYPES[name][0]
    if magnitude == "any bits":
        return random_bits(rng, dtype, shape)
    center, spread = MAGNITUDES[name][magnitude]
    exponents = (2 * center if product else center) + rng.integers(-spread, spread, shape, endpoint=True)
    numbers = (rng.standard_normal(shape) * 2.0**exponents).astype(np.float32)
    return to_bf16(numbers) if dtype == np.uint16 else numbers.astype(dtype)


def to_bf16(numbers):
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("magnitude", ["any bits", *MAGNITUDES["tdpbf16ps"]])
def test_pairs_round_as_defined_in_every_shape(run, name, magnitude):
    rng = np.random.default_rng(2)
    for m, k, n in itertools.product(EDGES, repeat=3):
        a = random_numbers(rng, name, (m, k, 2), magnitude)
        b = random_numbers(rng, name, (k, n, 2), magnitude)
        c = random_numbers(rng, name, (m, n), magnitude, product=True)
        assert_same_bits(run(a, b, c), product(name, a, b, c))


BF16_DENORMAL = 2.0**-130
F32_DENORMAL = 2.0**-140


# (name, a, b, c, expected)
DEFINING = [
    # The sum of a pair is rounded before it meets the accumulator,
    ("tdpbf16ps", [(2.0**24, 1)], [(1, 1)], -(2.0**24), 0.0),
    ("tdpfp16ps", [(2.0**15, 2.0**-9)], [(2.0**9, 2.0**9)], -(2.0**24), 0.0),
    # and so is the sum over k.
    ("tdpbf16ps", [(2.0**24, 0), (1, 0)], [(1, 0), (1, 0)], -(2.0**24), 0.0),
    # Evens and odds do not meet before the end,
    ("tdpbf16ps", [(2.0**24, 1), (-(2.0**24), 1)], [(1, 1), (1, 1)], 0.0, 2.0),
    # and to nearest even: 2^24 + 3 is 2^24 + 4.
    ("tdpbf16ps", [(2.0**24, 3)], [(1, 1)], 0.0, 2.0**24 + 4),
    # Products are not rounded: this one would be infinite, that one zero.
    ("tdpbf16ps", [(-(2.0**127), 0), (2.0**127, 0)], [(1, 0), (2, 0)], 0.0, 2.0**127),
    ("tdpbf16ps", [(2.0**-126, 0), (2.0**-100, 0)], [(1, 0), (2.0**-30, 0)], 0.0, 2.0**-126 + 2.0**-130),
    # Denormals are zeros, as operands,
    ("tdpbf16ps", [(BF16_DENORMAL, 0)], [(2.0**100, 0)], 0.0, 0.0),
    ("tdpbf16ps", [(1, 0)], [(1, 0)], F32_DENORMAL, 1.0),
    ("tdpbf16ps", [(2.0**-126, 0)], [(1, 0)], -(2.0**-127), 2.0**-126),
    ("tdpbf16ps", [(0, 0)], [(0, 0)], F32_DENORMAL, 0.0),
    # but those of f16 are not,
    ("tdpfp16ps", [(2.0**-24, 0)], [(2.0**15, 0)], 0.0, 2.0**-9),
    ("tdpfp16ps", [(2.0**-24, 0)], [(2.0**-24, 0)], 0.0, 2.0**-48),
    ("tdpfp16ps", [(0, 0)], [(0, 0)], F32_DENORMAL, 0.0),
    # and as results.
    ("tdpbf16ps", [(2.0**-100, 0)], [(2.0**-27, 0)], 1.0, 1.0),
    ("tdpbf16ps", [(2.0**-126, -(2.0**-126))], [(1.5, 1)], 0.0, 0.0),
    ("tdpbf16ps", [(1, np.inf)], [(np.inf, -1)], 0.0, np.nan),
    ("tdpbf16ps", [(0, 1)], [(np.inf, 1)], 0.0, np.nan),
    ("tdpfp16ps", [(1, 1)], [(1, np.inf)], -1.0, np.inf),
]


@pytest.mark.parametrize(
    ("name", "a", "b", "c", "expected"),
    [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(DEFINING) if case[0] in PAIRS],
)
def test_defining_cases(run, name, a, b, c, expected):
    a, b, c, expected = (np.array(numbers, np.float32) for numbers in ([a], b, [[c]], [[expected]]))
    b = b[:, None]
    a, b = (to_bf16(x) if name == "tdpbf16ps" else x.astype(np.float16) for x in (a, b))
    assert_same_bits(run(a, b, c), expected)
    assert_same_bits(product(name, a, b, c), expected)


# void apply(config, tiles, step): loads all eight tiles, calls step, stores them.
ALL_TILES = """
.globl apply
apply:
    ldtilecfg (%rdi)
    mov $64, %eax
    {loads}
    call *%rdx
    mov $64, %eax
    {stores}
    tilerelease
    ret
"""


def test_every_tile_serves_as_every_operand(amx):
    triples = list(itertools.permutations(range(8), 3))
    steps = "".join(f".globl s{c}{a}{b}\ns{c}{a}{b}: tdpbssd %tmm{b}, %tmm{a}, %tmm{c}\nret\n" for c, a, b in triples)
    apply = ALL_TILES.format(
        loads="\n".join(f"tileloadd {1024 * t}(%rsi,%rax), %tmm{t}" for t in range(8)),
        stores="\n".join(f"tilestored %tmm{t}, {1024 * t}(%rsi,%rax)" for t in range(8)),
    )
    library = assemble(apply + steps)
    config = tile_config(dict.fromkeys(range(8), (16, 64)))
    before = random_bits(np.random.default_rng(3), np.int8, (8, 16, 16, 4))
    for c, a, b in triples:
        tiles = before.copy()
        library.apply(config, tiles.ctypes, library[f"s{c}{a}{b}"])
        expected = before.copy()
        expected.view(np.int32)[c, ..., 0] = product("tdpbssd", before[a], before[b], before.view(np.int32)[c, ..., 0])
        np.testing.assert_array_equal(tiles, expected)
