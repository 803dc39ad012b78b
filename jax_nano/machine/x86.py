"""x86-64: instruction sets and processors, each with its source."""

from __future__ import annotations

from dataclasses import replace

from jax_nano.machine.fitted import fitted_for
from jax_nano.machine.isa import Cache, Core, DotInstruction, Isa, Machine

INTEL_SDM = "Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2"


def integer_dots(lanes: int, features: tuple[str, ...], name: str) -> tuple[DotInstruction, ...]:
    """VPDPBUSD, which multiplies unsigned by signed bytes, for every pair of signs.

    Of two signed or two unsigned operands, A is moved by 128 into the range of the other sign.
    """
    shape = (1, lanes, 4)
    return tuple(
        DotInstruction(name=name + order, lhs=lhs, rhs=rhs, acc="s32", shape=shape, features=features,
                       lhs_offset=offset)
        for order, lhs, rhs, offset in (
            ("", "u8", "s8", 0), ("_swapped", "s8", "u8", 0), ("", "s8", "s8", 128), ("_swapped", "u8", "u8", -128),
        )
    )  # fmt: skip


AVX2 = Isa(
    name="avx2",
    register_count=16,
    register_bytes=32,
    cpu="x86-64-v3",
    features=("avx2", "fma", "f16c"),
    dots=(
        DotInstruction(name="fma_f32", lhs="f32", rhs="f32", acc="f32", shape=(1, 8, 1)),
        DotInstruction(name="fma_f64", lhs="f64", rhs="f64", acc="f64", shape=(1, 4, 1)),
        *integer_dots(8, ("avxvnni",), "vpdpbusd_256"),
        *(
            DotInstruction(name=name, lhs=byte, rhs=byte, acc="s32", shape=(1, 8, 4), features=("avxvnniint8",))
            for name, byte in (("vpdpbssd_256", "s8"), ("vpdpbuud_256", "u8"))
        ),
        DotInstruction(name="vpmaddwd_256", lhs="s16", rhs="s16", acc="s32", shape=(1, 8, 2), operations=2),
    ),
    source=INTEL_SDM + ": VFMADD231PS, VFMADD231PD (VEX.256), VPMADDWD, VPDPBUSD, VPDPBSSD, VPDPBUUD (VEX.256)",
)

AVX512 = Isa(
    name="avx512",
    register_count=32,
    register_bytes=64,
    cpu="x86-64-v4",
    features=("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"),
    dots=(
        DotInstruction(name="fma_f32", lhs="f32", rhs="f32", acc="f32", shape=(1, 16, 1)),
        DotInstruction(name="fma_f64", lhs="f64", rhs="f64", acc="f64", shape=(1, 8, 1)),
        DotInstruction(name="vdpbf16ps", lhs="bf16", rhs="bf16", acc="f32", shape=(1, 16, 2), features=("avx512bf16",)),
        *integer_dots(16, ("avx512vnni",), "vpdpbusd_512"),
        DotInstruction(name="vpmaddwd_512", lhs="s16", rhs="s16", acc="s32", shape=(1, 16, 2), operations=2),
    ),
    conversions=("avx512fp16",),
    source=INTEL_SDM + ": VFMADD231PS, VFMADD231PD (EVEX.512), VDPBF16PS, VPDPBUSD, VPMADDWD (EVEX.512)",
)

# Every processor with AMX has the conversions of AVX512-BF16, which finish results.
AMX = Isa(
    name="amx",
    register_count=8,
    register_bytes=1024,
    cpu="x86-64-v4",
    features=(*AVX512.features, "amx-tile"),
    dots=tuple(
        DotInstruction(name=name, lhs=lhs, rhs=rhs, acc=acc, shape=(16, 16, steps), features=features, tiles=True)
        for name, lhs, rhs, acc, steps, features in (
            ("tdpbf16ps", "bf16", "bf16", "f32", 32, ("amx-bf16", "avx512bf16")),
            ("tdpfp16ps", "f16", "f16", "f32", 32, ("amx-fp16",)),
            ("tdpbssd", "s8", "s8", "s32", 64, ("amx-int8",)),
            ("tdpbsud", "s8", "u8", "s32", 64, ("amx-int8",)),
            ("tdpbusd", "u8", "s8", "s32", 64, ("amx-int8",)),
            ("tdpbuud", "u8", "u8", "s32", 64, ("amx-int8",)),
        )
    ),
    vectors=AVX512,
    source=INTEL_SDM + ": TDPBF16PS, TDPFP16PS, TDPBSSD and its like; volume 1, chapter 18: palette 1",
)

KIB, MIB = 1 << 10, 1 << 20


def caches(l1: tuple[int, int], l2: tuple[int, int], l3: tuple[int, int]) -> tuple[Cache, ...]:
    """Three levels of data cache, each (size, ways), the last shared by all cores; sizes in KiB, of L3 in MiB."""
    return (
        Cache(level=1, bytes=l1[0] * KIB, ways=l1[1]),
        Cache(level=2, bytes=l2[0] * KIB, ways=l2[1]),
        Cache(level=3, bytes=l3[0] * MIB, ways=l3[1], shared=True),
    )


AGNER = "Agner Fog, Instruction tables and The microarchitecture of Intel, AMD and VIA CPUs (agner.org/optimize)"
AMD_ZEN5 = "Software Optimization Guide for the AMD Zen 5 Microarchitecture, publication 58455"
AMD_ZEN4 = "Software Optimization Guide for the AMD Zen 4 Microarchitecture, publication 57647"
INTEL_EXTENSIONS = "Intel Architecture Instruction Set Extensions Programming Reference, 319433"
INTEL_OPTIMIZATION = "Intel 64 and IA-32 Architectures Optimization Reference Manual, 248966"

# Reorder buffers: the guides above for AMD's, Fog's page on each microarchitecture for the others.
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
LAKE = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=3,
    shuffles_per_cycle=1, issue_per_cycle=4, in_flight=224,
)  # fmt: skip
# Units of 512 bits stand at ports 0, with 1 joined to it, and 5.
LAKE_512 = replace(LAKE, vector_per_cycle=2)
WELL = Core(
    dots_per_cycle=2, dot_latency_cycles=5, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=3,
    shuffles_per_cycle=1, issue_per_cycle=4, in_flight=192,
)  # fmt: skip

PROCESSORS = (
    Machine(
        name="znver5",
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
        name="znver4",
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
        name="skylake-avx512",
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
        name="sapphirerapids",
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
        isas=(AMX, AVX512, AVX2),
        cores={"amx": COVE_TILES, "avx512": COVE_512, "avx2": COVE_256},
        caches=caches((48, 12), (2048, 16), (320, 20)),
        ghz=2.8,
        memory_gb_per_s=(12, 240),
        l3_gb_per_s=15,
        l2_bytes_per_cycle=48,
        lacks=("amx-fp16", "avxvnniint8"),
        source=INTEL_OPTIMIZATION + ": as Sapphire Rapids; caches: specifications of Xeon Platinum 8592+",
    ),
    Machine(
        name="graniterapids",
        isas=(AMX, AVX512, AVX2),
        cores={"amx": COVE_TILES, "avx512": COVE_512, "avx2": COVE_256},
        caches=caches((48, 12), (2048, 16), (504, 16)),
        ghz=2.8,
        memory_gb_per_s=(12, 400),
        l3_gb_per_s=15,
        l2_bytes_per_cycle=48,
        lacks=("avxvnniint8",),
        source=INTEL_OPTIMIZATION
        + ": as Sapphire Rapids; caches: specifications of Xeon 6980P; AMX-FP16: "
        + INTEL_EXTENSIONS,
    ),
    Machine(
        name="alderlake",
        isas=(AVX2,),
        cores={"avx2": COVE_256},
        caches=caches((48, 12), (1280, 10), (24, 12)),
        ghz=4.0,
        memory_gb_per_s=(30, 60),
        l3_gb_per_s=40,
        lacks=("avxvnniint8",),
        source=INTEL_OPTIMIZATION + ": 2.1 Golden Cove Microarchitecture",
    ),
    Machine(
        name="haswell",
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

MACHINES = tuple(replace(machine, fitted=fitted_for(machine.name)) for machine in PROCESSORS)

# LLVM's names of processors that are, for all that is said here, another one.
ALIASES = {
    "cascadelake": "skylake-avx512",
    "cooperlake": "skylake-avx512",
    "icelake-server": "sapphirerapids",
    "icelake-client": "sapphirerapids",
    "tigerlake": "sapphirerapids",
    "rocketlake": "sapphirerapids",
    "graniterapids-d": "graniterapids",
    "raptorlake": "alderlake",
    "meteorlake": "alderlake",
    "arrowlake": "alderlake",
    "lunarlake": "alderlake",
    "znver1": "znver3",
    "znver2": "znver3",
    "broadwell": "haswell",
    "skylake": "haswell",
}
