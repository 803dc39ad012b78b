"""AMD's processors, and those of makers that license its cores, each with its source."""

from __future__ import annotations

from dataclasses import replace

from jax_nano.machine.isa import Core, Machine, caches
from jax_nano.machine.x86_isas import AGNER, AVX2, AVX512

AMD_ZEN5 = "Software Optimization Guide for the AMD Zen 5 Microarchitecture, publication 58455"
AMD_ZEN4 = "Software Optimization Guide for the AMD Zen 4 Microarchitecture, publication 57647"
AMD_ZEN2 = "Software Optimization Guide for AMD EPYC 7002 Processors, publication 56305"
AMD_ZEN1 = "Software Optimization Guide for AMD Family 17h Processors, publication 55723"

# Reorder buffers: the guides above.
WIDE = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=4,
    shuffles_per_cycle=2, issue_per_cycle=8, in_flight=448,
)  # fmt: skip
# Two 256-bit halves for one 512-bit operation.
DOUBLE_PUMPED = Core(
    dots_per_cycle=1, dot_latency_cycles=4, loads_per_cycle=1, stores_per_cycle=0.5, vector_per_cycle=2,
    shuffles_per_cycle=1, issue_per_cycle=6, in_flight=320,
)  # fmt: skip
ZEN_256 = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=4,
    shuffles_per_cycle=2, issue_per_cycle=6, in_flight=256,
)  # fmt: skip
# One of the units multiplies integers.
ZEN2_256 = replace(ZEN_256, dot_latency_cycles=5, in_flight=224, slower=(("vpmaddwd_256", 1, 5),))
# Two 128-bit halves for one 256-bit operation: two units multiply and add, two load ports, one store port.
ZEN1_128 = Core(
    dots_per_cycle=1, dot_latency_cycles=5, loads_per_cycle=1, stores_per_cycle=0.5, vector_per_cycle=2,
    shuffles_per_cycle=1, issue_per_cycle=5, in_flight=192, slower=(("vpmaddwd_256", 0.5, 5),),
)  # fmt: skip

ZEN1_MARKS = "sse4a", "clzero"
ZEN2_MARKS = *ZEN1_MARKS, "clwb", "rdpid"
ZEN3_MARKS = *ZEN2_MARKS, "vaes", "vpclmulqdq"
ZEN4_MARKS = *ZEN3_MARKS, "gfni", "avx512vbmi2"

PROCESSORS = (
    Machine(
        name="znver5",
        vendor="AuthenticAMD",
        marks=(*ZEN4_MARKS, "avx512vp2intersect"),
        isas=(AVX512, AVX2),
        cores={"avx512": WIDE, "avx2": WIDE},
        caches=caches((48, 12), (1024, 16), (32, 16)),
        ghz=4.1,
        memory_gb_per_s=(40, 48),
        l3_gb_per_s=50,
        lacks=("avx512fp16", "avxvnniint8"),
        source=AMD_ZEN5 + ": 2.9 Load-Store Unit, 2.10 Floating-Point Unit",
    ),
    Machine(
        name="znver6",
        tune="znver5",
        vendor="AuthenticAMD",
        marks=(*ZEN4_MARKS, "avx512vp2intersect"),
        isas=(AVX512, AVX2),
        cores={"avx512": WIDE, "avx2": WIDE},
        caches=caches((48, 12), (1024, 16), (48, 16)),
        ghz=4.1,
        memory_gb_per_s=(40, 400),
        l3_gb_per_s=50,
        source="LLVM, pull request 179150, for its instructions (AVX512-FP16, AVX-VNNI-INT8); no guide is out, and it "
        "is taken to compute as Zen 5: " + AMD_ZEN5,
    ),
    Machine(
        name="znver4",
        vendor="AuthenticAMD",
        marks=ZEN4_MARKS,
        isas=(AVX512, AVX2),
        cores={"avx512": DOUBLE_PUMPED, "avx2": replace(ZEN_256, in_flight=320)},
        caches=caches((32, 8), (1024, 8), (32, 16)),
        ghz=3.7,
        memory_gb_per_s=(30, 200),
        l3_gb_per_s=50,
        lacks=("avx512fp16", "avxvnni", "avxvnniint8"),
        source=AMD_ZEN4,
    ),
    Machine(
        name="znver3",
        vendor="AuthenticAMD",
        marks=ZEN3_MARKS,
        isas=(AVX2,),
        cores={"avx2": ZEN_256},
        caches=caches((32, 8), (512, 8), (32, 16)),
        ghz=3.4,
        memory_gb_per_s=(22, 150),
        l3_gb_per_s=40,
        lacks=("avxvnni", "avxvnniint8"),
        source=AGNER,
    ),
    Machine(
        name="znver2",
        vendor="AuthenticAMD",
        marks=ZEN2_MARKS,
        isas=(AVX2,),
        cores={"avx2": ZEN2_256},
        caches=caches((32, 8), (512, 8), (16, 16)),
        ghz=3.3,
        memory_gb_per_s=(20, 150),
        l3_gb_per_s=40,
        lacks=("avxvnni", "avxvnniint8"),
        source=AMD_ZEN2 + ": 2.10 Floating-Point Unit; " + AGNER,
    ),
    Machine(
        name="znver1",
        vendor="AuthenticAMD",
        marks=ZEN1_MARKS,
        isas=(AVX2,),
        cores={"avx2": ZEN1_128},
        caches=caches((32, 8), (512, 8), (8, 16)),
        ghz=3.2,
        memory_gb_per_s=(18, 120),
        l3_gb_per_s=30,
        lacks=("avxvnni", "avxvnniint8"),
        source=AMD_ZEN1 + ": 2.11 Floating-Point Unit; " + AGNER,
    ),
)
