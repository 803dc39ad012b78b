"""The extension's own promises: what fails is an exception with LLVM's words; what the environment has it write."""

import pytest
from oracle import run_python

from jax_nano import _native

ENTRY = "func.func @k(%round: i64, %task: i64, %shared: !llvm.ptr, %local: !llvm.ptr, %a: memref<4xf32>)"
NO_SUCH_REGISTER = (
    f'module {{ {ENTRY} {{ %0 = llvm.inline_asm has_side_effects "nop", "={{zmm99}}" : () -> i32 return }} }}'
)


@pytest.mark.parametrize("text, words", [
    ("module {", "parsing the MLIR module failed:\n.*expected"),
    (f"module {{ {ENTRY} {{ %0 = math.erf %a : memref<4xf32> return }} }}", "parsing the MLIR module failed:\n"),
])  # fmt: skip
@pytest.mark.parametrize("function", [_native.compile, _native.assembly, _native.llvm_ir])
def test_a_module_that_cannot_be_lowered(function, text, words):
    with pytest.raises(RuntimeError, match=words):
        function(text, "x86-64-v3", "", "x86-64-v3")


@pytest.mark.parametrize("function", [_native.compile, _native.assembly])
def test_a_module_that_llvm_has_no_code_for(function):
    with pytest.raises(RuntimeError, match=r"^generating code failed:\ncouldn't allocate output register .*zmm99"):
        function(NO_SUCH_REGISTER, "x86-64-v3", "", "x86-64-v3")


def written_for_perf(folder, monkeypatch, value):
    """How many files a process leaves that runs a kernel with JAX_NANO_PERF."""
    folder.mkdir()
    monkeypatch.setenv("JITDUMPDIR", str(folder))
    monkeypatch.setenv("JAX_NANO_PERF", value)
    run_python("import numpy as np, jax_nano\njax_nano.matmul(np.ones((3, 5)), np.ones((5, 7))).block_until_ready()")
    return len(list(folder.rglob("*.dump")))


def test_perf_is_a_switch(tmp_path, monkeypatch):
    assert written_for_perf(tmp_path / "off", monkeypatch, "0") == 0
    if written_for_perf(tmp_path / "on", monkeypatch, "On") == 0:
        pytest.skip("this LLVM was built without support of perf")
    assert written_for_perf(tmp_path / "other", monkeypatch, "maybe") == 0
