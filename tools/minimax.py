"""Prints jax_nano/kernels/coefficients.py: the best approximations of functions by polynomials and quotients of them.

    python tools/minimax.py | ruff format - > jax_nano/kernels/coefficients.py

It takes some minutes. Remez' exchange, in 400 bits: coefficients such that the weighted error takes its largest value,
with alternating signs, in one place more than there are coefficients. Source: Muller, "Elementary Functions", 3rd
edition, section 3. Coefficients are then rounded to the format from the lowest on, the rest being fitted anew after
each, where that is better than to round them all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import mpmath as mp
from mpmath import mpf

mp.mp.prec = 400
POINTS = 1000  # where the error is looked at
EXCHANGES = 30

Function = Callable[[mpf], mpf]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What to approximate on (low, high): f(x) by P(x**power) / Q(x**power), Q(0) = 1.

    The error counts relative to `scale`, by default f itself.
    """

    f: Function
    low: float
    high: float
    bits: int  # of a coefficient
    degrees: tuple[int, int]  # of P and Q
    power: int = 1
    scale: Function | None = None
    fixed: dict[int, float] = field(default_factory=dict)  # coefficients of P that are given

    def points(self) -> list[mpf]:
        """Where the error is looked at, denser towards the ends."""
        middle, radius = mpf(self.low + self.high) / 2, mpf(self.high - self.low) / 2
        return [middle - radius * mp.cos(mp.pi * (i + mpf(1) / 2) / POINTS) for i in range(POINTS)]

    def rounded(self, value: mpf) -> mpf:
        """The nearest coefficient of the format."""
        with mp.workprec(self.bits):
            return +value


@dataclass(frozen=True)
class Solution:
    """Coefficients, and the largest weighted error."""

    numerator: list[mpf]
    denominator: list[mpf]
    error: mpf


def value(coefficients: list[mpf], t: mpf) -> mpf:
    """A polynomial."""
    return mp.polyval(coefficients[::-1], t)


def solve(fit: Fit, fixed: tuple[dict[int, mpf], dict[int, mpf]]) -> Solution:
    """The best coefficients, those in `fixed` (of P, of Q) being given."""
    xs = fit.points()
    ts, fs = [x**fit.power for x in xs], [fit.f(x) for x in xs]
    scales = [abs((fit.scale or fit.f)(x)) for x in xs]
    free = [(part, j) for part in (0, 1) for j in range(fit.degrees[part] + 1) if j not in fixed[part]]
    count = len(free) + 1
    nodes = [round((1 - mp.cos(mp.pi * (i + mpf(1) / 2) / count)) / 2 * (POINTS - 1)) for i in range(count)]
    current = [
        [given.get(j, mpf(0)) for j in range(degree + 1)] for given, degree in zip(fixed, fit.degrees, strict=True)
    ]
    best = None
    for _ in range(EXCHANGES):
        # P - f Q = +- error * scale * Q, with Q on the right from the last round: linear.
        for _ in range(6 if fit.degrees[1] else 1):
            matrix, right = mp.matrix(count, count), mp.matrix(count, 1)
            for row, node in enumerate(nodes):
                t, f = ts[node], fs[node]
                for column, (part, j) in enumerate(free):
                    matrix[row, column] = (-f if part else 1) * t**j
                matrix[row, count - 1] = (-1) ** row * scales[node] * value(current[1], t)
                given = [sum(c * t**j for j, c in part.items()) for part in fixed]
                right[row] = f * given[1] - given[0]
            solved = mp.lu_solve(matrix, right)
            for column, (part, j) in enumerate(free):
                current[part][j] = solved[column]
        errors = [
            (value(current[0], t) / value(current[1], t) - f) / scale
            for t, f, scale in zip(ts, fs, scales, strict=True)
        ]
        worst = max(map(abs, errors))
        if best is None or worst < best.error:
            best = Solution(list(current[0]), list(current[1]), worst)
        extrema = alternating(errors, count)
        if extrema is None or worst < abs(solved[count - 1]) * mpf("1.01"):
            break
        nodes = extrema
    return best


def alternating(errors: list[mpf], count: int) -> list[int] | None:
    """The places of `count` extrema of alternating signs, the largest in all; None where there are fewer."""
    places: list[int] = []
    for i, error in enumerate(errors):
        if not places or mp.sign(error) != mp.sign(errors[places[-1]]):
            places.append(i)
        elif abs(error) > abs(errors[places[-1]]):
            places[-1] = i
    while len(places) > count:
        if len(places) == count + 1:
            places.pop(0 if abs(errors[places[0]]) < abs(errors[places[-1]]) else -1)
        else:
            pairs = range(len(places) - 1)
            low = min(pairs, key=lambda k: max(abs(errors[places[k]]), abs(errors[places[k + 1]])))
            del places[low : low + 2]
    return places if len(places) == count else None


def representable(fit: Fit) -> Solution:
    """The best of some solutions in coefficients of the format."""
    fixed = {j: mpf(c) for j, c in fit.fixed.items()}, {0: mpf(1)}
    order = sorted((j, part) for part in (0, 1) for j in range(fit.degrees[part] + 1) if j not in fixed[part])
    solution = solve(fit, fixed)
    candidates = [rounded(fit, solution)]
    for j, part in order[:-1]:
        fixed[part][j] = fit.rounded((solution.numerator, solution.denominator)[part][j])
        solution = solve(fit, fixed)
    candidates.append(rounded(fit, solution))
    return min(candidates, key=lambda candidate: candidate.error)


def rounded(fit: Fit, solution: Solution) -> Solution:
    """A solution with each coefficient rounded."""
    numerator, denominator = ([fit.rounded(c) for c in part] for part in (solution.numerator, solution.denominator))
    error = max(
        abs((value(numerator, x**fit.power) / value(denominator, x**fit.power) - fit.f(x)) / (fit.scale or fit.f)(x))
        for x in fit.points()
    )
    return Solution(numerator, denominator, error)


def near_zero(f: Function, series: Function) -> Function:
    """f, and where it would cancel its digits the beginning of its series."""
    return lambda x: f(x) if abs(x) > mpf(2) ** -60 else series(x)


R = float(mp.log(2) / 2) * 1.0005
S = 0.2001  # the largest |f / (2 + f)| for f in (-1/3, 1/3)
exp_rest = near_zero(lambda r: (mp.expm1(r) - r) / r**2, lambda r: mpf(1) / 2 + r / 6)
log_rest = near_zero(lambda s: 2 * (mp.atanh(s) / s - 1) / s**2, lambda _: mpf(2) / 3)
log_rest_of_rest = near_zero(lambda s: (log_rest(s) - mpf(2) / 3) / s**2, lambda _: mpf(2) / 5)


def scaled_erfc(x: mpf) -> mpf:
    """erfc without what makes it small."""
    return mp.exp(x * x) * mp.erfc(x)


def exp(bits: int, degree: int) -> Fit:
    """The rest of expm1, which is exp's too."""
    scale = near_zero(lambda r: mp.expm1(r) / r**2, lambda r: 1 / r)
    return Fit(f=exp_rest, low=-R, high=R, bits=bits, degrees=(degree, 0), scale=scale)


def log(bits: int, degree: int) -> Fit:
    """What log adds to 2s, s = f / (2 + f), for 1 + f."""
    return Fit(
        f=log_rest, low=0, high=S, bits=bits, degrees=(degree, 0), power=2, scale=lambda s: 2 * mp.atanh(s) / s**3
    )


def tanh(bits: int, degree: int) -> Fit:
    """The rest of tanh beyond x."""
    return Fit(f=lambda x: (mp.tanh(x) / x - 1) / x**2, low=0, high=0.551, bits=bits, degrees=(degree, 0), power=2,
               scale=lambda x: mp.tanh(x) / x**3)  # fmt: skip


def erf(bits: int, degree: int) -> Fit:
    """The rest of erf beyond x."""
    return Fit(f=lambda x: mp.erf(x) / x - 1, low=0, high=1, bits=bits, degrees=(degree, 0), power=2,
               scale=lambda x: mp.erf(x) / x)  # fmt: skip


def erf_tail(bits: int, high: float, degrees: tuple[int, int]) -> Fit:
    """exp(x * x) * erfc(x), as 1 - erf needs it."""
    return Fit(f=scaled_erfc, low=1, high=high, bits=bits, degrees=degrees, scale=lambda x: mp.exp(x * x) * mp.erf(x))


def erfc(bits: int, high: float, degrees: tuple[int, int]) -> Fit:
    """What erfc is times exp(-x * x)."""
    return Fit(f=scaled_erfc, low=0, high=high, bits=bits, degrees=degrees)


def mapped_erfc(bits: int, high: float, degree: int) -> Fit:
    """The same times 1 + 2x, as a function of q = (x - 4) / (x + 4)."""

    def f(q: mpf) -> mpf:
        x = 4 * (1 + q) / (1 - q)
        return (1 + 2 * x) * scaled_erfc(x)

    return Fit(f=f, low=-1, high=(high - 4) / (high + 4), bits=bits, degrees=(degree, 0))


ERF_IS_1 = {"f32": 3.93, "f64": 6.0}
ERFC_IS_0 = {"f32": 10.1, "f64": 27.3}

POLYNOMIALS: dict[str, tuple[str, dict[str, Fit]]] = {
    "EXP": (
        "(expm1(r) - r) / r**2 for |r| < 0.3468, in powers of r; the error is relative to expm1.",
        {"f32": exp(24, 4), "f64": exp(53, 10)},
    ),
    "LOG": (
        "(2 atanh(s) - 2 s) / s**3 for |s| < 0.2001, in powers of s**2; the error is relative to 2 atanh(s).",
        {"f32": log(24, 2), "f64": log(53, 7)},
    ),
    "LOG_OF_POW": (
        "(2 atanh(s) - 2 s - 2/3 s**3) / s**5 for |s| < 0.2001, in powers of s**2; the error is relative.",
        {"f64": Fit(f=log_rest_of_rest, low=0, high=S, bits=53, degrees=(7, 0), power=2)},
    ),
    "TANH": (
        "(tanh(x) - x) / x**3 for |x| < 0.551, in powers of x**2; the error is relative to tanh.",
        {"f32": tanh(24, 4), "f64": tanh(53, 10)},
    ),
    "ERF": (
        "erf(x) / x - 1 for |x| < 1, in powers of x**2; the error is relative to erf(x) / x.",
        {"f32": erf(24, 6), "f64": erf(53, 11)},
    ),
    "ERFC_MAPPED": (
        "(1 + 2x) exp(x * x) erfc(x) for x from 0 to where erfc is 0, in powers of (x - 4) / (x + 4); relative.",
        {"f64": mapped_erfc(53, ERFC_IS_0["f64"], 23)},
    ),
    "CBRT": (
        "x**(-1/3) for x in (1/3, 8/3), in powers of x, where iterations begin; the error is relative.",
        {"f32": Fit(f=lambda x: x ** (-mpf(1) / 3), low=0.333, high=2.667, bits=24, degrees=(4, 0))},
    ),
    "SIN": (
        "sin(r) / r for |r| < 0.8, in powers of r**2, for f32 computed in f64; the error is relative.",
        {"f32": Fit(f=lambda r: mp.sin(r) / r, low=0, high=0.8, bits=53, degrees=(4, 0), power=2)},
    ),
    "COS": (
        "cos(r) for |r| < 0.8, in powers of r**2, for f32 computed in f64; the error is relative.",
        {"f32": Fit(f=mp.cos, low=0, high=0.8, bits=53, degrees=(4, 0), power=2)},
    ),
}

QUOTIENTS: dict[str, tuple[str, dict[str, Fit]]] = {
    "ERF_TAIL": (
        "exp(x * x) * erfc(x) for x from 1 to where erf is 1; the error of erfc is relative to erf.",
        {"f32": erf_tail(24, ERF_IS_1["f32"], (2, 2)), "f64": erf_tail(53, ERF_IS_1["f64"], (5, 6))},
    ),
    "ERFC": (
        "exp(x * x) * erfc(x) for x from 0 to where erfc is 0, for f32 computed in f64; the error is relative.",
        {"f32": erfc(53, ERFC_IS_0["f32"], (4, 5))},
    ),
}

TURN_BITS = 20
TURNS = 6

HEADER = '''"""Coefficients of math.py and power.py, from the lowest power on. Printed by tools/minimax.py."""

Polynomial = tuple[float, ...]
Quotient = tuple[Polynomial, Polynomial]
'''


def turn(j: int) -> tuple[float, float]:
    """2**(TURN_BITS * j) modulo 2 pi."""
    angle = mpf(2) ** (TURN_BITS * j)
    angle -= 2 * mp.pi * mp.nint(angle / (2 * mp.pi))
    return float(angle), float(angle - float(angle))


def entry(dtype: str, solution: Solution) -> str:
    """A line of a table."""
    numerator, denominator = (tuple(map(float, part)) for part in (solution.numerator, solution.denominator))
    return f'"{dtype}": {(numerator, denominator) if len(denominator) > 1 else numerator},'


def main() -> None:
    """Prints the file."""
    lines = [HEADER]
    for kind, tables in (("Polynomial", POLYNOMIALS), ("Quotient", QUOTIENTS)):
        for name, (text, fits) in tables.items():
            solutions = {dtype: representable(fit) for dtype, fit in fits.items()}
            errors = [f"2**{float(mp.log(s.error, 2)):.1f} in {dtype}" for dtype, s in solutions.items()]
            lines += ["", f"# {text}", f"# Largest error: {', '.join(errors)}.", f"{name}: dict[str, {kind}] = {{"]
            lines += [entry(dtype, solution) for dtype, solution in solutions.items()] + ["}"]
    lines += ["", "# From here on they are, rounded.", f"ERF_IS_1 = {ERF_IS_1}", f"ERFC_IS_0 = {ERFC_IS_0}"]
    lines += [
        "",
        "# 2**(TURN_BITS * j) modulo 2 pi for j = 0, 1, ..., as sums of two numbers.",
        f"TURN_BITS = {TURN_BITS}",
    ]
    lines += [f"TURNS = {tuple(map(turn, range(TURNS)))}"]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
