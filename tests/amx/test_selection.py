"""What is collected on a processor without AMX, on one with all of it, and on one that lacks AMX-FP16."""

import os
import subprocess
import sys
from pathlib import Path

from .selection import NEEDED, way

# Of AMX and of the vectors beside it, by LLVM's names.
VECTORS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16"}
ZEN_5 = VECTORS | {"avx512vp2intersect", "avxvnni"}
SAPPHIRE_RAPIDS = VECTORS | {"avx512fp16", "amx-tile", "amx-bf16", "amx-int8"}
GRANITE_RAPIDS = SAPPHIRE_RAPIDS | {"amx-fp16"}
BYTES = {"tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"}


def ways(present):
    return {name: way(needed, present) for name, needed in NEEDED.items()}


def test_without_amx_all_is_emulated():
    assert ways(ZEN_5) == dict.fromkeys(NEEDED, "emulated")


def test_with_amx_all_that_the_processor_has_is_native_and_nothing_else_runs():
    assert ways(SAPPHIRE_RAPIDS) == dict.fromkeys({"tdpbf16ps", *BYTES}, "native") | {"tdpfp16ps": None}
    assert ways(GRANITE_RAPIDS) == dict.fromkeys(NEEDED, "native")


def test_features_of_vectors_do_not_count():
    assert "avx512bf16" in NEEDED["tdpbf16ps"]
    assert way(NEEDED["tdpbf16ps"], {"amx-tile", "amx-bf16"}) == "native"


def collected(present):
    """The tests of AMX that would be collected on a processor."""
    tests = Path(__file__).parents[1]
    files = sorted([*tests.glob("codegen/test_tile_*.py"), *tests.glob("amx/test_*.py")])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        env=os.environ | {"TESTS_AMX_FEATURES": ",".join(present)},
        cwd=tests.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return {line for line in run.stdout.splitlines() if "::" in line}


def test_of_amx_without_fp16_products_of_f16_are_left_out_and_nothing_else():
    without, with_all = collected(SAPPHIRE_RAPIDS), collected(GRANITE_RAPIDS)
    assert without < with_all
    left_out = with_all - without
    by_name = {test for test in with_all if "tdpfp16ps" in test and "test_tile_assembly" not in test}
    by_types = {test for test in with_all if "[" in test and "f16" in test.split("[")[1].replace("bf16", "").split("-")}
    assert left_out == by_name | {test for test in by_types if "test_tile_kernels" in test}
    assert by_name and by_types
