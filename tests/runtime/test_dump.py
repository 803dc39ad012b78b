"""JAX_NANO_DUMP: files of each kernel, compiled or found on disk, and no failure of a program."""

import re

import jax
import numpy as np
import pytest
from oracle import kernels, normal

import jax_nano
from jax_nano import config
from jax_nano.runtime import compiler
from jax_nano.runtime import kernels as runtime_kernels

X, W = normal(13, 32), normal(32, 18)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_NANO_DUMP", str(tmp_path / "to" / "look at"))
    config.warn.cache_clear()
    runtime_kernels._kernels.clear()
    yield tmp_path / "to" / "look at"
    runtime_kernels._kernels.clear()


def contents(folder):
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


def test_every_stage_is_written(folder):
    (report,) = jax_nano.inspect(jax_nano.matmul, X, W)
    kernel = report.kernel
    assert kernel
    (stem,) = {path.stem for path in folder.iterdir()}
    assert re.fullmatch(rf"{kernel.name}-[0-9a-f]{{16}}", stem)
    assert int(stem[-16:], 16) == kernel.key % 2**64
    files = contents(folder)
    assert files.keys() == {".plan", ".mlir", ".ll", ".s", ".o"}
    assert files[".o"] == kernel.object
    assert files[".s"].decode() == kernel.assembly
    assert files[".ll"].decode() == kernel.llvm_ir
    assert files[".mlir"].decode() == kernel.mlir
    assert f"mr = {kernel.plan.mr}\n" in files[".plan"].decode()


def test_kernels_found_on_disk_are_written(folder, monkeypatch):
    jax_nano.inspect(jax_nano.matmul, X, W)
    written = contents(folder)
    for path in folder.iterdir():
        path.unlink()
    runtime_kernels._kernels.clear()
    monkeypatch.setattr(compiler, "build_module", lambda _: pytest.fail("compiled what the disk holds"))
    jax_nano.inspect(jax_nano.matmul, X, W)
    assert contents(folder) == written


def test_a_directory_that_cannot_be_written_is_said_once(folder):
    folder.parent.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="jax_nano cannot write kernels to JAX_NANO_DUMP=") as warned, kernels(2):
        products = [jax_nano.matmul(x, W) for x in (X, X[:3])]
    assert len(warned) == 1
    np.testing.assert_allclose(products[0], X @ W, rtol=1e-4, atol=1e-4)


@pytest.mark.breaks_the_compiler
@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_of_a_kernel_that_does_not_compile_there_is_what_there_is(folder, monkeypatch):
    def fail(*_):
        raise RuntimeError("LLVM ERROR")

    for stage in ("compile", "assembly", "llvm_ir"):
        monkeypatch.setattr(compiler._native, stage, fail)
    with kernels(0):
        jax.jit(lambda x, w: jax_nano.matmul(x, w))(X, W).block_until_ready()  # noqa: PLW0108, jit knows the other
    assert contents(folder).keys() == {".plan", ".mlir"}
