"""x86-64: instruction sets, each with its source, and the sources that several vendors' files name."""

from __future__ import annotations

from jax_nano.machine.isa import DotInstruction, Isa

AGNER = "Agner Fog, Instruction tables and The microarchitecture of Intel, AMD and VIA CPUs (agner.org/optimize)"
CHIPS_AND_CHEESE = "Chips and Cheese (chipsandcheese.com)"
INTEL_EXTENSIONS = "Intel Architecture Instruction Set Extensions Programming Reference, 319433"
INTEL_OPTIMIZATION = "Intel 64 and IA-32 Architectures Optimization Reference Manual, 248966"
INTEL_SDM = "Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2"

UOPS_INFO = "uops.info, measured latencies and throughputs"


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
