"""The shape of facts about processors: types only, each value stands in x86_*.py or fitted.py."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from jax_nano.ir.dtypes import BITS, bytes_of
from jax_nano.machine.coefficients import Fitted
from jax_nano.machine.fitted import ZNVER5


@dataclass(frozen=True, kw_only=True)
class DotInstruction:
    """acc[m, n] += lhs[m, k] @ rhs[k, n], by one instruction on one accumulator register."""

    name: str
    lhs: str
    rhs: str
    acc: str
    shape: tuple[int, int, int]  # (m, n, k), elements
    features: tuple[str, ...] = ()  # LLVM subtarget features beyond the instruction set's own
    lhs_offset: int = 0  # what must be added to lhs before, and taken from acc again: lhs_offset * sum of rhs over k
    operations: int = 1  # vector instructions that it takes: 2 where products are added by another one
    tiles: bool = False  # registers hold tiles, whose rows and depth are configured: `shape` is the most they hold

    def __post_init__(self):
        if unknown := [dtype for dtype in (self.lhs, self.rhs, self.acc) if dtype not in BITS]:
            raise ValueError(f"{self.name}: there are no types {unknown}")
        if self.shape[2] % self.vnni or BITS[self.lhs] != BITS[self.rhs]:
            raise ValueError(f"{self.name}: {self.shape[2]} steps of {self.lhs} by {self.rhs} do not fill accumulators")

    @functools.cached_property
    def vnni(self) -> int:
        """Neighbours along k that stand together, in the place of one accumulator: v of the VNNI layout."""
        return BITS[self.acc] // BITS[self.rhs]

    def fitted(self, m: int, k: int) -> DotInstruction:
        """The instruction on tiles that cut m rows and k steps evenly, in as few as it can.

        All tiles of an operand then have one shape, which a task configures once.
        """
        rows, lanes, steps = self.shape
        return replace(self, shape=(even_part(m, rows, 1), lanes, even_part(k, steps, self.vnni)))


def even_part(size: int, most: int, multiple: int) -> int:
    """The size of the parts where the fewest that cover `size` are even; a multiple, and not above `most`."""
    parts = -(-size // most)
    return -(-size // (parts * multiple)) * multiple


@dataclass(frozen=True, kw_only=True)
class Isa:
    """An instruction set: registers, and the instructions that update a block of accumulators."""

    name: str
    register_count: int
    register_bytes: int
    cpu: str  # LLVM's name of the baseline that has it, and nothing newer
    features: tuple[str, ...]  # LLVM's names of what the baseline needs of a processor
    dots: tuple[DotInstruction, ...]
    source: str  # where to check these numbers
    conversions: tuple[str, ...] = ()  # features by which LLVM converts f16 in fewer instructions
    vectors: Isa | None = None  # what packs operands and finishes results where these registers are tiles

    def __post_init__(self):
        for dot in self.dots:
            m, n, _ = dot.shape
            if (used := bytes_of(dot.acc, m * n)) != self.register_bytes:
                raise ValueError(
                    f"{self.name}: {dot.name} accumulates {used} bytes; a register holds {self.register_bytes}"
                )

    @property
    def needed_features(self) -> tuple[str, ...]:
        """What it needs of a processor that has all of its instructions."""
        return (*self.features, *(feature for dot in self.dots for feature in dot.features), *self.conversions)

    def lanes(self, dtype: str) -> int:
        """How many elements of a type fill a register."""
        return self.register_bytes // bytes_of(dtype)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One level of data cache."""

    level: int
    bytes: int
    ways: int
    line_bytes: int = 64
    shared: bool = False  # by several cores

    def __post_init__(self):
        if min(self.level, self.ways, self.line_bytes) < 1 or self.bytes < self.ways * self.line_bytes:
            raise ValueError(f"a cache of level {self.level}: {self.bytes} bytes do not make {self.ways} ways of lines")

    @functools.cached_property
    def way_bytes(self) -> int:
        """Addresses this far apart compete for the same lines."""
        return self.bytes // self.ways


KIB, MIB = 1 << 10, 1 << 20


def caches(l1: tuple[int, int], l2: tuple[int, int], l3: tuple[int, int]) -> tuple[Cache, ...]:
    """Three levels of data cache, each (size, ways), the last shared by all cores; sizes in KiB, of L3 in MiB."""
    return (
        Cache(level=1, bytes=l1[0] * KIB, ways=l1[1]),
        Cache(level=2, bytes=l2[0] * KIB, ways=l2[1]),
        Cache(level=3, bytes=l3[0] * MIB, ways=l3[1], shared=True),
    )


@dataclass(frozen=True, kw_only=True)
class Core:
    """Throughputs of one core, for full registers of one instruction set."""

    dots_per_cycle: float  # multiply-accumulate instructions begun
    dot_latency_cycles: int  # from one update of an accumulator to the next
    loads_per_cycle: float
    stores_per_cycle: float
    vector_per_cycle: float  # vector instructions of any kind, but for loads and stores
    shuffles_per_cycle: float = 1  # of these, those that move elements between lanes
    issue_per_cycle: int  # instructions of any kind
    in_flight: int  # instructions in its reorder buffer, begun and not yet retired
    setup_cycles: int = 0  # before a task's first instruction, and after its last
    slower: tuple[tuple[str, float, int], ...] = ()  # other instructions: (name, begun per cycle, latency in cycles)

    def __post_init__(self):
        rates = self.dots_per_cycle, self.loads_per_cycle, self.stores_per_cycle, self.vector_per_cycle
        if min(*rates, self.shuffles_per_cycle, self.issue_per_cycle, self.dot_latency_cycles) <= 0:
            raise ValueError("a core without throughput")

    def rate(self, instruction: str) -> tuple[float, int]:
        """(begun per cycle, latency in cycles) of a multiply-accumulate instruction."""
        for name, per_cycle, latency in self.slower:
            if name == instruction:
                return per_cycle, latency
        return self.dots_per_cycle, self.dot_latency_cycles


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A processor: its instruction sets, best first, and what they cost here."""

    name: str  # LLVM's name, which also selects the scheduling model
    isas: tuple[Isa, ...]
    cores: dict[str, Core]  # by instruction set
    caches: tuple[Cache, ...]  # innermost first
    ghz: float  # sustained under vector load
    memory_gb_per_s: tuple[float, float]  # read bandwidth of one core, and of all
    l3_gb_per_s: float  # read bandwidth of one core from the last level of cache
    source: str
    tune: str = ""  # LLVM's name of the scheduling model, where LLVM 22 has none of this processor
    vendor: str = ""  # as CPUID has it
    marks: tuple[str, ...] = ()  # features that tell it from others with its instruction sets
    threads: int = 1  # worth having tasks for: one a core
    slow_threads: int = 0  # of these, on cores of another kind, which are slower
    slow_speed: float = 1.0  # of such a core, in multiply-accumulates: a share of what the others do
    l2_bytes_per_cycle: float = 32  # what one core reads from L2
    l3_stream_bytes_per_cycle: float = 24  # what it reads from the LLC where that was prefetched
    page_bytes: int = 4096  # where prefetchers end
    fitted: Fitted = ZNVER5
    lacks: tuple[str, ...] = ()  # features that instructions of its instruction sets need, and that it does not have
    measured: tuple[str, ...] = ()  # facts that a calibration measured: they count where they differ; see measured.py
    note: str = ""  # which of its instruction sets are left out, and why
    stands_for: str = ""  # the processor that it is the nearest kin of, where nobody named that

    def __post_init__(self):
        if missing := {isa.name for isa in self.isas} - set(self.cores):
            raise ValueError(f"{self.name}: no throughputs for {sorted(missing)}")
        levels = [cache.level for cache in self.caches]
        if not levels or levels != sorted(levels):
            raise ValueError(f"{self.name}: caches of levels {levels}; innermost first is asked for")
        one, all_cores = self.memory_gb_per_s
        if not 0 < one <= all_cores or self.l3_gb_per_s <= 0 or self.ghz <= 0:
            raise ValueError(f"{self.name}: one core reads {one} GB/s, all of them {all_cores}, at {self.ghz} GHz")

        if not 0 <= self.slow_threads < self.threads or not 0 < self.slow_speed <= 1:
            slow = f"{self.slow_threads} of {self.threads} threads on slow cores, at {self.slow_speed} of the speed"
            raise ValueError(f"{self.name}: {slow}, which cannot be")

    @functools.cached_property
    def features(self) -> frozenset[str]:
        """LLVM's names of all features that it is known by."""
        needed = {feature for isa in self.isas for feature in isa.needed_features}
        return frozenset(needed - set(self.lacks) | set(self.marks))

    @functools.cached_property
    def l1(self) -> Cache:
        """The innermost data cache."""
        return self.caches[0]

    @functools.cached_property
    def l2(self) -> Cache:
        """L2, or the only level there is."""
        return self.caches[:2][-1]

    @functools.cached_property
    def llc(self) -> Cache:
        """The last level of cache."""
        return self.caches[-1]

    def vector_core(self, isa: str) -> Core:
        """The throughputs of vectors beside the instructions of that instruction set."""
        vectors = self.isa(isa).vectors
        return self.cores[vectors.name if vectors else isa]

    def isa(self, name: str) -> Isa:
        """The instruction set of that name.

        Raises:
          ValueError: this machine has none of that name.
        """
        for isa in self.isas:
            if isa.name == name:
                return isa
        known = ", ".join(isa.name for isa in self.isas)
        raise ValueError(f"{self.name} has no {name} (it has {known}); choose one of these")
