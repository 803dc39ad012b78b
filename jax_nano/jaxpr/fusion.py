"""Fusion: the products of a jaxpr, each with as much of the work around it as one kernel does.

What becomes part of a product's region:
- of its operands, transposes, reshapes and broadcasts, and, where only products read them, conversions without rounding
  and weights in the form they are kept in;
- of operand A, elementwise work on one array of its size that only this product reads. It is done while A is packed,
  by every task that has other columns of C, which saves XLA a pass over A: worth the while where C does not have many
  columns; where it has few, and A is small, even for elementary functions and divisions, which take long;
- of its result, whatever is elementwise and leads to one array: a value inside of the region is used nowhere else, so
  nothing is computed twice, and a region ends before a value that has uses beside the region;
- the same views of the other arrays that the elementwise work reads. Work on those arrays themselves stays outside.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

from jax._src.named_sharding import UNSPECIFIED
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, no_effects
from jax.extend.core.primitives import convert_element_type_p, custom_jvp_call_p, jit_p

from jax_nano.ir.program import INSTRUCTIONS, OPERATIONS
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.operands import VIEWS, is_exact, unpacked_view, viewed
from jax_nano.jaxpr.primitives import PRODUCTS, nano_dequantize_p, nano_region_p, nano_unpack_p
from jax_nano.jaxpr.program_reader import SYNONYMS
from jax_nano.jaxpr.region import CALLS, Region, called
from jax_nano.jaxpr.strided_views import NoView, View

LONGEST_TAIL = 96  # equations
LONGEST_PROLOGUE = 24
# Of C, so that tasks divide its rows, and of A. XLA makes a large softmax in one pass, which takes less than all of it
# but the division: on Zen 5, a product behind a softmax gains 3 to 48 % up to this size, and loses 2 to 10 % beyond it.
FEW_COLUMNS, SMALL_ELEMENTS = 128, 1 << 18
# With as many, the pass over A that is saved is as long as what tasks do again, or as reading A in place saves. On Zen
# 5, products of 128 to 2048 rows gain 0 to 30 % with up to 1024 columns, and lose up to 3 % with 2304 to 4096.
MANY_COLUMNS = 1024
# What makes arrays of the forms that weights are kept in.
WEIGHTS = frozenset({nano_dequantize_p, nano_unpack_p})
ELEMENTWISE = frozenset({*OPERATIONS, *SYNONYMS})


def fused(jaxpr: Jaxpr, every_prologue: bool = False) -> Jaxpr:
    """The jaxpr with a nano_region for each product that has a kernel. Jaxprs in its equations stay as they are.

    Calls of jitted functions that hold nothing but products, views and elementwise work are written out. There are no
    kernels for sizes that are not known.

    Args:
      jaxpr: a program.
      every_prologue: whether elementwise work on A is fused however long it takes.
    """
    if not any(eqn.primitive in PRODUCTS for eqn in jaxpr.eqns) or not has_known_sizes(jaxpr):
        return jaxpr
    program = _Program(jaxpr, every_prologue)
    for i, eqn in enumerate(jaxpr.eqns):
        if eqn.primitive in PRODUCTS:
            program.fuse(i)
    return jaxpr.replace(eqns=[eqn for _, eqn in sorted(program.eqns.items())])


class _Program:
    """A jaxpr's equations by their places while they are fused, and who makes and uses each value."""

    def __init__(self, jaxpr: Jaxpr, every_prologue: bool):
        self.jaxpr = jaxpr
        self.every_prologue = every_prologue
        self.regions: list[Region] = []
        self.eqns = dict(enumerate(jaxpr.eqns))
        self.caller = len(jaxpr.eqns)  # uses the results, behind all equations
        self.makers = {out: i for i, eqn in self.eqns.items() for out in eqn.outvars}
        self.users: defaultdict[Var, Counter[int]] = defaultdict(Counter)
        for i, eqn in self.eqns.items():
            self.use(eqn.invars, i)
        self.use(jaxpr.outvars, self.caller)

    def use(self, atoms: Iterable[Atom], user: int) -> None:
        """Notes a user of values."""
        for x in variables(atoms):
            self.users[x][user] += 1

    def remove(self, i: int) -> None:
        """Takes an equation out, and with it what only moved or converted its operands."""
        for x in variables(self.eqns.pop(i).invars):
            self.users[x] -= Counter([i])
            maker = self.maker(x)
            if not self.users[x] and maker is not None and is_source(self.eqns[maker]):
                self.remove(maker)

    def maker(self, x: Var) -> int | None:
        """The equation that makes a value, unless it is an argument or made inside of a region."""
        i = self.makers.get(x)
        return i if i in self.eqns else None

    def fuse(self, product: int) -> None:
        """Puts a region in the place of a product that has a kernel, and of what can be fused with it."""
        starts = self.tails(product)[:2]  # what comes next may be what makes C's last dimension one that can be read
        choices = ((which, tail) for which in CONVERTED for tail in starts)
        chosen = next((which for which, tail in choices if not self.region(product, which, tail).unsupported), None)
        if chosen is None:
            return
        before, kept = self.prologue(product, chosen, starts)
        tail, region, stopped = self.longest(product, chosen, before)
        region = region.between(kept, stopped, self.regions)
        self.regions.append(region)
        place = tail[-1] if tail else product
        eqn = self.eqns[product].replace(
            primitive=nano_region_p,
            params={"region": region},
            invars=list[Atom](region.jaxpr.invars),
            outvars=self.eqns[place].outvars,
        )
        self.use(eqn.invars, place)
        for i in (product, *tail, *before):
            if i in self.eqns:
                self.remove(i)
        self.eqns[place] = eqn

    def longest(self, product: int, converted: tuple[bool, bool], before: Sequence[int]) -> tuple:
        """The longest tail that fits into a region, the region, and why it ends there."""
        stopped = ""
        for tail in reversed(self.tails(product)):
            region = self.region(product, converted, tail, before)
            last = self.eqns[tail[-1] if tail else product]
            if not region.unsupported or not tail:
                return tail, region, stopped or self.uses(*last.outvars)
            stopped = f"{last.primitive}: {region.unsupported}"
        raise AssertionError("the tail without equations comes last")

    def prologue(
        self, product: int, converted: tuple[bool, bool], tails: Sequence[Sequence[int]]
    ) -> tuple[tuple[int, ...], str]:
        """The most elementwise work on A that fits into a region, and why there is no more, if that is known."""
        kept = ""
        for operand in (0, 1):
            chains, reason = self.chains(product, operand)
            for chain in reversed(chains):
                reasons = [self.region(product, converted, tail, chain).unsupported for tail in tails]
                if not all(reasons):
                    return chain, kept or reason
                first = self.eqns[chain[-1]].primitive
                kept = kept or f"{first}: {reasons[0]}"
            kept = kept or reason
        return (), kept

    def chains(self, product: int, operand: int) -> tuple[list[tuple[int, ...]], str]:
        """Elementwise work that makes nothing but one operand of a product, each chain longer than the last.

        The equations nearest to the product come first. And why there is no longer chain, if that is known.
        """
        x = self.eqns[product].invars[operand]
        rows, columns = free_sizes(self.eqns[product], operand)
        size = type_of(x).size
        small = columns <= FEW_COLUMNS and size <= SMALL_ELEMENTS
        short, one, pays = (self.every_prologue or rule for rule in (small, rows == 1, columns <= MANY_COLUMNS))
        chains, taken, own, reason = [], [], {product}, ""
        ahead: list[int] = []

        def read(atoms: Iterable[Atom]) -> None:
            for maker in {self.maker(atom) for atom in variables(atoms)}:
                if maker is not None:
                    heapq.heappush(ahead, -maker)

        read([x])
        while ahead and len(taken) < LONGEST_PROLOGUE:
            i = -heapq.heappop(ahead)
            eqn = self.eqns[i]
            if i in own or not is_fusable(eqn) or type_of(eqn.outvars[0]).size != size:
                continue
            works = not is_moving(eqn) or is_rounding(eqn)
            if works and not set(self.users[eqn.outvars[0]]) <= own:
                reason = reason or f"{eqn.primitive}: {self.uses(eqn.outvars[0])}"
            elif works and not (pays and (short or not takes_long(eqn))):
                reason = reason or f"{eqn.primitive}: takes no longer outside, with {columns} columns of C"
            elif set(self.users[eqn.outvars[0]]) <= own:
                own.add(i)
                taken.append(i)
                read(eqn.invars)
                if works and (one or self.reads_one(taken, size)):
                    chains.append(tuple(taken))
        return chains, reason

    def reads_one(self, chain: Sequence[int], size: int) -> bool:
        """Whether equations read no more than one array of this size: each would have to be there in memory."""
        made = {out for i in chain for out in self.eqns[i].outvars}
        read = {x for i in chain for x in variables(self.eqns[i].invars) if x not in made}
        sources = {x for x in map(self.source, read) if isinstance(x, Var)}
        return sum(type_of(x).size == size for x in sources) <= 1

    def source(self, x: Atom) -> Atom:
        """The array or number that a value is a view of, in another type perhaps that holds it."""
        while isinstance(x, Var) and (i := self.maker(x)) is not None and is_moving(self.eqns[i]):
            if is_rounding(self.eqns[i]):
                break
            (x,) = self.eqns[i].invars
        return x

    def uses(self, x: Var) -> str:
        """Says who uses a value."""
        names = [str(self.eqns[i].primitive) if i in self.eqns else "the caller" for i in sorted(self.users[x])]
        return f"used by {' and '.join(names)}"

    def region(
        self, product: int, converted: tuple[bool, bool], tail: Sequence[int] = (), before: Sequence[int] = ()
    ) -> Region:
        """The region of a product, of equations before and behind it, and of all that only moves what they read."""
        lhs, rhs = self.eqns[product].invars
        moving = [
            *self.behind(lhs, self.is_multiplied, converted[0]),
            *self.behind(rhs, self.is_multiplied, converted[1]),
        ]
        own = {product, *tail, *before}
        for i in (*before, *tail):
            for x in variables(self.eqns[i].invars):
                if self.maker(x) not in own:
                    moving += self.behind(x, is_exact if i in before else self.is_used_once)
        eqns = [self.eqns[i] for i in sorted({*own, *moving})]
        made = {out for eqn in eqns for out in eqn.outvars}
        invars = dict.fromkeys(x for eqn in eqns for x in variables(eqn.invars) if x not in made)
        outvars = self.eqns[tail[-1] if tail else product].outvars
        return Region(self.jaxpr.replace(
            constvars=[], invars=list(invars), outvars=outvars, eqns=eqns, effects=no_effects
        ))  # fmt: skip

    def behind(self, x: Atom, is_folded: Callable[[JaxprEqn], bool], converted: bool = True) -> list[int]:
        """The equations, nearest to the array first, through which strides read a value."""
        chain: list[int] = []
        while isinstance(x, Var) and (i := self.maker(x)) is not None and is_moving(self.eqns[i]):
            eqn = self.eqns[i]
            if eqn.primitive is convert_element_type_p and not (converted and is_folded(eqn)):
                break
            chain.insert(0, i)
            (x,) = eqn.invars
        if isinstance(x, Var) and converted and (i := self.maker(x)) is not None and self.is_weight(self.eqns[i]):
            chain.insert(0, i)
        starts = range(len(chain) + 1)
        return next(chain[start:] for start in starts if is_readable([self.eqns[i] for i in chain[start:]]))

    def is_weight(self, eqn: JaxprEqn) -> bool:
        """Whether an equation makes the array that a weight stands for, and only products read it."""
        return eqn.primitive in WEIGHTS and self.is_for_products(eqn.outvars[0])

    def is_multiplied(self, conversion: JaxprEqn) -> bool:
        """Whether a conversion rounds nothing, and only products read what it makes."""
        return is_exact(conversion) and self.is_for_products(conversion.outvars[0])

    def is_for_products(self, x: Var) -> bool:
        """Whether only products read a value, perhaps moved."""
        return all(
            i in self.eqns and (self.eqns[i].primitive in PRODUCTS or is_moving(self.eqns[i])) for i in self.users[x]
        )

    def is_used_once(self, conversion: JaxprEqn) -> bool:
        """Whether nothing else uses what a conversion makes."""
        return self.users[conversion.outvars[0]].total() == 1

    def tails(self, product: int) -> list[tuple[int, ...]]:
        """Equations behind a product that together make one value of all they make, each tail longer than the last.

        They are taken in the order of the program while they are elementwise. Where one is not, what it uses stays in
        use, so no longer tail would make one value only.
        """
        tails, taken = [()], []
        alive: Counter[Var] = Counter()  # how many uses each value made so far still has
        ahead: list[int] = []

        def made(x: Var) -> None:
            alive[x] = self.users[x].total()
            for user in self.users[x]:
                heapq.heappush(ahead, user)

        made(self.eqns[product].outvars[0])
        while ahead and len(taken) < LONGEST_TAIL:
            i = heapq.heappop(ahead)
            if taken and i == taken[-1]:
                continue
            if i not in self.eqns or not is_fusable(self.eqns[i]):
                break
            taken.append(i)
            alive -= Counter(x for x in variables(self.eqns[i].invars) if x in alive)
            (out,) = self.eqns[i].outvars
            made(out)
            if alive.keys() == {out}:
                tails.append(tuple(taken))
        return tails


# For which operands conversions are read through: both where that can be, at best.
CONVERTED = (True, True), (False, True), (True, False), (False, False)


def variables(atoms: Iterable[Atom]) -> list[Var]:
    """Those that are no numbers."""
    return [x for x in atoms if not isinstance(x, Literal)]


def has_known_sizes(jaxpr: Jaxpr) -> bool:
    """Whether every size is a number."""
    made = (out for eqn in jaxpr.eqns for out in eqn.outvars)
    shapes = (getattr(x.aval, "shape", ()) for x in (*jaxpr.constvars, *jaxpr.invars, *made))
    return all(isinstance(size, int) for shape in shapes for size in shape)


def is_moving(eqn: JaxprEqn) -> bool:
    """Whether an equation only moves or converts the elements of one array."""
    moves = eqn.primitive in VIEWS or eqn.primitive is convert_element_type_p
    return moves and len(eqn.invars) == 1 and eqn.params.get("sharding") is None


def is_rounding(eqn: JaxprEqn) -> bool:
    """Whether an equation is a conversion that is not exact."""
    return eqn.primitive is convert_element_type_p and not is_exact(eqn)


def takes_long(eqn: JaxprEqn) -> bool:
    """Whether a fusable equation has an operation of many instructions in it."""
    return any(map(takes_long, called(eqn).eqns)) if eqn.primitive in CALLS else eqn.primitive.name in INSTRUCTIONS


def is_source(eqn: JaxprEqn) -> bool:
    """Whether an equation may be read through on the way to a product, which leaves it without use."""
    return is_moving(eqn) or eqn.primitive in WEIGHTS


def is_readable(eqns: Sequence[JaxprEqn]) -> bool:
    """Whether strides say what equations, each moving what the one before it makes, do with an array."""
    if not eqns:
        return True
    first = eqns[0]
    view = View.of(type_of((first.outvars if first.primitive is nano_dequantize_p else first.invars)[0]).shape)
    try:
        for eqn in eqns:
            view = unpacked_view(eqn) if eqn.primitive is nano_unpack_p else view
            view = viewed(eqn, view) if eqn.primitive in VIEWS else view
    except NoView:
        return False
    return True


def free_sizes(product: JaxprEqn, operand: int) -> tuple[int, int]:
    """How many rows and columns C has, where the rows are this operand's: those of a matrix of the batch."""
    sizes = []
    for i in (operand, 1 - operand):
        contracting, batch = (dims[i] for dims in product.params["dimension_numbers"])
        shape = type_of(product.invars[i]).shape
        sizes.append(math.prod(size for d, size in enumerate(shape) if d not in (*contracting, *batch)))
    rows, columns = sizes
    return rows, columns


def is_fusable(eqn: JaxprEqn) -> bool:
    """Whether an equation may become part of a product's tail."""
    if eqn.effects or len(eqn.outvars) != 1:
        return False
    if eqn.primitive is custom_jvp_call_p:
        return is_light(called(eqn), products=False)
    return eqn.primitive.name in ELEMENTWISE or is_moving(eqn)


_light: dict[bool, WeakKeyDictionary[Jaxpr, bool]] = {True: WeakKeyDictionary(), False: WeakKeyDictionary()}


def is_light(jaxpr: Jaxpr, *, products: bool) -> bool:
    """Whether a jaxpr holds only what can be fused, and perhaps products."""
    known = _light[products]
    if jaxpr not in known:
        known[jaxpr] = not jaxpr.constvars and all(
            is_fusable(eqn) or (products and eqn.primitive in PRODUCTS) or light_call(eqn, products=products)
            for eqn in jaxpr.eqns
        )
    return known[jaxpr]


def light_call(eqn: JaxprEqn, *, products: bool = True) -> Jaxpr | None:
    """What an equation calls, if that is light and the call says nothing else."""
    if eqn.primitive is not jit_p:
        return None
    params = eqn.params
    shardings = (*params["in_shardings"], *params["out_shardings"])
    layouts = (*params["in_layouts"], *params["out_layouts"])
    unspecified = all(s is UNSPECIFIED for s in shardings) and all(layout is None for layout in layouts)
    plain = unspecified and not any(params["donated_invars"]) and not params["compiler_options_kvs"]
    return called(eqn) if plain and is_light(called(eqn), products=products) else None
