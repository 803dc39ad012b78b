"""Intel's processors of the Atom line, which are efficiency cores alone, and Xeon Phi; each with its source."""

from __future__ import annotations

from jax_nano.machine.isa import KIB, Cache, Core, Machine, caches
from jax_nano.machine.x86_intel import ALDERLAKE_MARKS, ARROWLAKE_MARKS
from jax_nano.machine.x86_isas import AGNER, AVX2, CHIPS_AND_CHEESE, INTEL_OPTIMIZATION, UOPS_INFO

# Reorder buffers: the sources below. Units of 128 bits, so that a 256-bit operation takes two.
GRACEMONT = Core(
    dots_per_cycle=1, dot_latency_cycles=6, loads_per_cycle=1, stores_per_cycle=1, vector_per_cycle=1.5,
    shuffles_per_cycle=1, issue_per_cycle=5, in_flight=256,
)  # fmt: skip
# Four units rather than two, three load ports rather than two.
SKYMONT = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=1.5, stores_per_cycle=1, vector_per_cycle=2,
    shuffles_per_cycle=1, issue_per_cycle=8, in_flight=416,
)  # fmt: skip
# 256 bits of units of 512: it has AVX-512 without AVX512-BW, -DQ and -VL.
KNIGHTS = Core(
    dots_per_cycle=2, dot_latency_cycles=6, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=2,
    shuffles_per_cycle=1, issue_per_cycle=2, in_flight=72,
)  # fmt: skip

# L2 is shared by four cores, of Knights Landing by two: a core's share of it.
PROCESSORS = (
    Machine(
        name="gracemont",
        vendor="GenuineIntel",
        marks=ALDERLAKE_MARKS,
        isas=(AVX2,),
        cores={"avx2": GRACEMONT},
        caches=caches((32, 8), (512, 4), (6, 12)),
        ghz=3.2,
        memory_gb_per_s=(12, 35),
        l3_gb_per_s=20,
        lacks=("avxvnniint8",),
        source=UOPS_INFO + " of Alder Lake-E; caches: specifications of Core i3-N305",
    ),
    Machine(
        name="sierraforest",
        vendor="GenuineIntel",
        marks=(*ARROWLAKE_MARKS, "cldemote"),
        isas=(AVX2,),
        cores={"avx2": GRACEMONT},
        caches=caches((32, 8), (1024, 4), (108, 12)),
        ghz=2.7,
        memory_gb_per_s=(10, 300),
        l3_gb_per_s=12,
        source=UOPS_INFO + " of Alder Lake-E, whose cores Crestmont follows; caches: specifications of Xeon 6780E",
    ),
    Machine(
        name="clearwaterforest",
        vendor="GenuineIntel",
        marks=(*ARROWLAKE_MARKS, "cldemote", "avxvnniint16"),
        isas=(AVX2,),
        cores={"avx2": SKYMONT},
        caches=caches((32, 8), (1024, 4), (576, 12)),
        ghz=2.7,
        memory_gb_per_s=(10, 500),
        l3_gb_per_s=12,
        source="no guide is out: Darkmont is taken to compute as Skymont; "
        + CHIPS_AND_CHEESE
        + ": Intel Details Skymont",
    ),
    Machine(
        name="knl",
        vendor="GenuineIntel",
        marks=("avx512f", "avx512cd"),
        isas=(AVX2,),
        cores={"avx2": KNIGHTS},
        caches=(Cache(level=1, bytes=32 * KIB, ways=8), Cache(level=2, bytes=512 * KIB, ways=8)),
        ghz=1.3,
        memory_gb_per_s=(8, 80),
        l3_gb_per_s=8,
        lacks=("avxvnni", "avxvnniint8"),
        source=AGNER + "; " + INTEL_OPTIMIZATION + ": Knights Landing Microarchitecture",
    ),
)
