"""The extension's own promises: what fails is an exception with LLVM's words."""

import pytest

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
