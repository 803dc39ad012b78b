"""Facts about processors check themselves, and fitted coefficients say whose they are."""

import re
from dataclasses import replace

import pytest

from jax_nano.machine import x86
from jax_nano.machine.coefficients import Evidence
from jax_nano.machine.fitted import ZNVER5
from jax_nano.machine.isa import Cache, Core, DotInstruction

FMA = x86.AVX512.dots[0]
MACHINE = x86.MACHINES[0]
CORE = MACHINE.cores["avx512"]


@pytest.mark.parametrize(
    "facts, changes, text",
    [
        (FMA, {"acc": "f33"}, "fma_f32: there are no types ['f33']"),
        (FMA, {"rhs": "bf16"}, "fma_f32: 1 steps of f32 by bf16 do not fill accumulators"),
        (x86.AVX2, {"register_bytes": 64}, "avx2: fma_f32 accumulates 32 bytes; a register holds 64"),
        (Cache(level=1, bytes=1 << 15, ways=8), {"ways": 1 << 10},
         "a cache of level 1: 32768 bytes do not make 1024 ways of lines"),
        (CORE, {"loads_per_cycle": 0}, "a core without throughput"),
        (MACHINE, {"cores": {}}, "znver5: no throughputs for ['avx2', 'avx512']"),
        (MACHINE, {"caches": MACHINE.caches[::-1]}, "znver5: caches of levels [3, 2, 1]; innermost first is asked for"),
        (MACHINE, {"memory_gb_per_s": (50, 40)}, "znver5: one core reads 50 GB/s, all of them 40, at 4.1 GHz"),
        (MACHINE, {"threads": 4, "slow_threads": 4},
         "znver5: 4 of 4 threads on slow cores, at 1.0 of the speed, which cannot be"),
        (MACHINE, {"slow_speed": 0}, "znver5: 0 of 1 threads on slow cores, at 0 of the speed, which cannot be"),
        (ZNVER5, {"resident_share": 1.5}, "znver5: resident_share is 1.5, which cannot be"),
        (ZNVER5, {"wake_us": -1}, "znver5: wake_us is -1, which cannot be"),
        (ZNVER5, {"resident_share": 0.0}, "znver5: resident_share and followed_pages must be above 0"),
        (ZNVER5, {"prefetch_bytes": 1.5e4}, "znver5: prefetch_bytes must be whole"),
        (ZNVER5, {"evidence": (("wake_ms", Evidence(spread=0.1, count=9)),)},
         "znver5: there are no coefficients ['wake_ms']"),
    ],
)  # fmt: skip
def test_facts_that_contradict_themselves(facts, changes, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        replace(facts, **changes)


def test_processors_without_measurements_are_taken_to_be_like_others():
    like = {machine.name: machine.fitted.processor for machine in x86.MACHINES}
    assert like["haswell"] == like["znver3"] == like["alderlake"] == "znver5"
    assert like["skylake-avx512"] == like["graniterapids"] == "sapphirerapids"


def test_every_instruction_has_a_name_of_its_own():
    for isa in (x86.AVX2, x86.AVX512, x86.AMX):
        names = [dot.name for dot in isa.dots]
        assert len({(dot.name, dot.lhs, dot.rhs, dot.lhs_offset) for dot in isa.dots}) == len(names)
        assert all(isinstance(dot, DotInstruction) for dot in isa.dots)


def test_a_slower_instruction_has_its_own_rate():
    core = Core(**{**vars(CORE), "slower": (("vdpbf16ps", 0.5, 8),)})
    assert core.rate("vdpbf16ps") == (0.5, 8)
    assert core.rate("fma_f32") == (CORE.dots_per_cycle, CORE.dot_latency_cycles)
