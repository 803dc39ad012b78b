"""Intel's processors with performance cores, each with its source; x86_atom.py has those without."""

from __future__ import annotations

from dataclasses import replace

from jax_nano.machine.isa import Core, Machine, caches
from jax_nano.machine.x86_isas import AGNER, AMX, AVX2, AVX512, INTEL_EXTENSIONS, INTEL_OPTIMIZATION

# Reorder buffers: Fog's page on each microarchitecture.
COVE_512 = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=2,
    shuffles_per_cycle=1, issue_per_cycle=6, in_flight=512, slower=(("vdpbf16ps", 0.5, 8),),
)  # fmt: skip
# Throughput and latency: the TDP* instructions 16 and 52 cycles, TILELOADD 8, TILESTORED 16, LDTILECFG 204 (latency),
# TILERELEASE 13. They are those of full tiles: none are published for tiles of fewer rows. Nor is how many tiles there
# are beside the eight with names: blocks are taken to follow one another.
COVE_TILES = Core(
    dots_per_cycle=1 / 16, dot_latency_cycles=52, loads_per_cycle=1 / 8, stores_per_cycle=1 / 16, vector_per_cycle=2,
    shuffles_per_cycle=1, issue_per_cycle=6, in_flight=1, setup_cycles=204 + 13,
)  # fmt: skip
COVE_256 = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=3, stores_per_cycle=2, vector_per_cycle=3,
    shuffles_per_cycle=2, issue_per_cycle=6, in_flight=512,
)  # fmt: skip
# Four vector ports, two of which multiply and add.
LION_256 = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=3, stores_per_cycle=2, vector_per_cycle=4,
    shuffles_per_cycle=2, issue_per_cycle=8, in_flight=576,
)  # fmt: skip
# The 512-bit unit of ports 0 and 1 alone; VDPBF16PS as in the cores before.
LION_512 = replace(LION_256, dots_per_cycle=1, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=2,
                   shuffles_per_cycle=1, slower=COVE_512.slower)  # fmt: skip
SUNNY_256 = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=3,
    shuffles_per_cycle=2, issue_per_cycle=5, in_flight=352,
)  # fmt: skip
SUNNY_512 = replace(SUNNY_256, vector_per_cycle=2, shuffles_per_cycle=1)
# Clients have the 512-bit unit of ports 0 and 1, and not that of port 5, which does other vector instructions.
SUNNY_512_CLIENT = replace(SUNNY_512, dots_per_cycle=1)
LAKE = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=3,
    shuffles_per_cycle=1, issue_per_cycle=4, in_flight=224,
)  # fmt: skip
# Units of 512 bits stand at ports 0, with 1 joined to it, and 5.
LAKE_512 = replace(LAKE, vector_per_cycle=2)
LAKE_512_CLIENT = replace(LAKE_512, dots_per_cycle=1)
WELL = Core(
    dots_per_cycle=2, dot_latency_cycles=5, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=3,
    shuffles_per_cycle=1, issue_per_cycle=4, in_flight=192,
)  # fmt: skip

SKYLAKE_MARKS = "clflushopt", "xsavec"
ICELAKE_MARKS = *SKYLAKE_MARKS, "avx512vbmi2", "gfni", "vaes"
ALDERLAKE_MARKS = *SKYLAKE_MARKS, "gfni", "vaes", "movdiri", "serialize"
ARROWLAKE_MARKS = *ALDERLAKE_MARKS, "avxifma", "cmpccxadd"
RAPIDS_MARKS = *ICELAKE_MARKS, "cldemote", "movdiri", "serialize"

# The clock of the Rapids is that of vectors of 512 bits, and of tiles, on two cores of a Sapphire Rapids guest: 138
# GFLOP/s of f32 on one thread.
SERVERS = (
    Machine(
        name="sapphirerapids",
        vendor="GenuineIntel",
        marks=RAPIDS_MARKS,
        isas=(AMX, AVX512, AVX2),
        cores={"amx": COVE_TILES, "avx512": COVE_512, "avx2": COVE_256},
        caches=caches((48, 12), (2048, 16), (32, 15)),
        ghz=2.1,
        memory_gb_per_s=(12, 200),
        l3_gb_per_s=15,
        l2_bytes_per_cycle=48,
        lacks=("amx-fp16", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": 2.1 Golden Cove Microarchitecture; 20 Intel AMX: throughput and latency",
    ),
    Machine(
        name="emeraldrapids",
        vendor="GenuineIntel",
        marks=RAPIDS_MARKS,
        isas=(AMX, AVX512, AVX2),
        cores={"amx": COVE_TILES, "avx512": COVE_512, "avx2": COVE_256},
        caches=caches((48, 12), (2048, 16), (320, 20)),
        ghz=2.1,
        memory_gb_per_s=(12, 240),
        l3_gb_per_s=15,
        l2_bytes_per_cycle=48,
        lacks=("amx-fp16", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": as Sapphire Rapids; caches: specifications of Xeon Platinum 8592+",
    ),
    Machine(
        name="graniterapids",
        vendor="GenuineIntel",
        marks=RAPIDS_MARKS,
        isas=(AMX, AVX512, AVX2),
        cores={"amx": COVE_TILES, "avx512": COVE_512, "avx2": COVE_256},
        caches=caches((48, 12), (2048, 16), (504, 16)),
        ghz=2.1,
        memory_gb_per_s=(12, 400),
        l3_gb_per_s=15,
        l2_bytes_per_cycle=48,
        lacks=("avxvnniint8",),
        source=INTEL_OPTIMIZATION
        + ": as Sapphire Rapids; caches: specifications of Xeon 6980P; AMX-FP16: "
        + INTEL_EXTENSIONS,
    ),
    Machine(
        name="diamondrapids",
        vendor="GenuineIntel",
        marks=(*RAPIDS_MARKS, "avxifma", "amx-fp8"),
        isas=(AMX, AVX512, AVX2),
        cores={"amx": COVE_TILES, "avx512": COVE_512, "avx2": COVE_256},
        caches=caches((48, 12), (2048, 16), (504, 16)),
        ghz=2.8,
        memory_gb_per_s=(12, 400),
        l3_gb_per_s=15,
        l2_bytes_per_cycle=48,
        source="no guide is out: taken to compute as Granite Rapids; instructions: " + INTEL_EXTENSIONS,
    ),
    Machine(
        name="icelake-server",
        vendor="GenuineIntel",
        marks=(*ICELAKE_MARKS, "wbnoinvd"),
        isas=(AVX512, AVX2),
        cores={"avx512": SUNNY_512, "avx2": SUNNY_256},
        caches=caches((48, 12), (1280, 20), (48, 12)),
        ghz=2.7,
        memory_gb_per_s=(12, 160),
        l3_gb_per_s=15,
        lacks=("avx512fp16", "avx512bf16", "avxvnni", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": Ice Lake Server Microarchitecture; caches: specifications of Xeon Platinum 8358",
    ),
    Machine(
        name="skylake-avx512",
        vendor="GenuineIntel",
        marks=SKYLAKE_MARKS,
        isas=(AVX512, AVX2),
        cores={"avx512": LAKE_512, "avx2": LAKE},
        caches=caches((32, 8), (1024, 16), (24, 11)),
        ghz=2.6,
        memory_gb_per_s=(12, 100),
        l3_gb_per_s=15,
        lacks=("avx512fp16", "avx512bf16", "avx512vnni", "avxvnni", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": 2.6 Skylake Server Microarchitecture",
    ),
    Machine(
        name="cascadelake",
        vendor="GenuineIntel",
        marks=SKYLAKE_MARKS,
        isas=(AVX512, AVX2),
        cores={"avx512": LAKE_512, "avx2": LAKE},
        caches=caches((32, 8), (1024, 16), (33, 11)),
        ghz=2.7,
        memory_gb_per_s=(12, 110),
        l3_gb_per_s=15,
        lacks=("avx512fp16", "avx512bf16", "avxvnni", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": as Skylake Server, with AVX512-VNNI",
    ),
    Machine(
        name="cooperlake",
        vendor="GenuineIntel",
        marks=SKYLAKE_MARKS,
        isas=(AVX512, AVX2),
        cores={"avx512": LAKE_512, "avx2": LAKE},
        caches=caches((32, 8), (1024, 16), (33, 11)),
        ghz=2.7,
        memory_gb_per_s=(12, 120),
        l3_gb_per_s=15,
        lacks=("avx512fp16", "avxvnni", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": as Skylake Server, with AVX512-VNNI and AVX512-BF16, as LLVM 22 has them",
    ),
)

CLIENTS = (
    Machine(
        name="novalake",
        tune="sapphirerapids",
        vendor="GenuineIntel",
        marks=(*ARROWLAKE_MARKS, "avx512vbmi2"),
        isas=(AVX512, AVX2),
        cores={"avx512": LION_512, "avx2": LION_256},
        caches=caches((48, 12), (4096, 16), (36, 12)),
        ghz=4.6,
        memory_gb_per_s=(35, 90),
        l3_gb_per_s=40,
        slow_speed=0.85,
        source="no guide is out: taken to compute as Arrow Lake, with AVX10.2 on one 512-bit unit as other clients; "
        "instructions: " + INTEL_EXTENSIONS,
    ),
    # Of its other cores, each multiplies and adds as many 256-bit vectors in a cycle, at 4.6 rather than 5.4 GHz.
    Machine(
        name="arrowlake",
        vendor="GenuineIntel",
        marks=ARROWLAKE_MARKS,
        isas=(AVX2,),
        cores={"avx2": LION_256},
        caches=caches((48, 12), (3072, 12), (36, 12)),
        ghz=4.6,
        memory_gb_per_s=(35, 90),
        l3_gb_per_s=40,
        slow_speed=0.85,
        source=INTEL_OPTIMIZATION
        + ": Lion Cove Microarchitecture; caches, clocks: specifications of Core Ultra 9 285K",
    ),
    # Of its other cores, each multiplies and adds one 256-bit vector in a cycle rather than two, at 3.9 for 5.2 GHz.
    Machine(
        name="alderlake",
        vendor="GenuineIntel",
        marks=ALDERLAKE_MARKS,
        isas=(AVX2,),
        cores={"avx2": COVE_256},
        caches=caches((48, 12), (1280, 10), (24, 12)),
        ghz=4.0,
        memory_gb_per_s=(30, 60),
        l3_gb_per_s=40,
        slow_speed=0.37,
        lacks=("avxvnniint8",),
        source=INTEL_OPTIMIZATION + ": 2.1 Golden Cove Microarchitecture",
    ),
    Machine(
        name="icelake-client",
        vendor="GenuineIntel",
        marks=ICELAKE_MARKS,
        isas=(AVX512, AVX2),
        cores={"avx512": SUNNY_512_CLIENT, "avx2": SUNNY_256},
        caches=caches((48, 12), (512, 8), (8, 16)),
        ghz=3.5,
        memory_gb_per_s=(18, 40),
        l3_gb_per_s=30,
        lacks=("avx512fp16", "avx512bf16", "avxvnni", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": Ice Lake Client Microarchitecture; units of 512 bits: " + AGNER,
    ),
    Machine(
        name="cannonlake",
        vendor="GenuineIntel",
        marks=(*SKYLAKE_MARKS, "avx512vbmi", "sha"),
        isas=(AVX512, AVX2),
        cores={"avx512": LAKE_512_CLIENT, "avx2": LAKE},
        caches=caches((32, 8), (256, 4), (4, 16)),
        ghz=2.6,
        memory_gb_per_s=(15, 30),
        l3_gb_per_s=25,
        lacks=("avx512fp16", "avx512bf16", "avx512vnni", "avxvnni", "avxvnniint8"),
        source=AGNER + "; caches: specifications of Core i3-8121U",
    ),
    Machine(
        name="skylake",
        vendor="GenuineIntel",
        marks=SKYLAKE_MARKS,
        isas=(AVX2,),
        cores={"avx2": LAKE},
        caches=caches((32, 8), (256, 4), (8, 16)),
        ghz=3.6,
        memory_gb_per_s=(18, 34),
        l3_gb_per_s=25,
        lacks=("avxvnni", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": Skylake Client Microarchitecture; " + AGNER,
    ),
    Machine(
        name="haswell",
        vendor="GenuineIntel",
        marks=(),
        isas=(AVX2,),
        cores={"avx2": WELL},
        caches=caches((32, 8), (256, 8), (8, 16)),
        ghz=3.0,
        memory_gb_per_s=(12, 25),
        l3_gb_per_s=25,
        lacks=("avxvnni", "avxvnniint8"),
        source=AGNER,
    ),
)
