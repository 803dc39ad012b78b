"""Installs wheels of dist/ into fresh environments, and runs them where no LLVM is.

usage: python tools/try_wheel.py [PYTHON ...]

For each Python (by default all that are found) the wheel for it is installed with the newest JAX it may have. A program
with a product and its gradient runs in a mount namespace where the system's LLVM and MLIR are hidden, which takes root
or user namespaces. With the first of them, jax_nano and each of BESIDE that can be installed, which bring LLVMs of
their own, also compile in one process, imported in either order.
"""

import pathlib
import subprocess
import sys
import tempfile

from pythons import SERIES, interpreter

ROOT = pathlib.Path(__file__).parents[1]
HIDE = """
set -e
for place in /usr/lib/llvm-* /opt/llvm*; do
  if [ -d "$place" ]; then mount -t tmpfs none "$place"; fi
done
for file in $(ldconfig -p | sed -n 's/.*=> \\(.*lib\\(LLVM\\|MLIR\\).*\\)/\\1/p'); do
  if [ -e "$file" ]; then mount --bind /dev/null "$file"; fi
done
exec "$@"
"""
PRODUCT = """
import jax, jax.numpy as jnp, numpy as np, pathlib, jax_nano
def compile_ours(n):
    x, w = (jax.random.normal(jax.random.key(i), (n, n)) for i in range(2))
    loss = lambda w: jnp.sin(jax_nano.matmul(x, w)).sum()
    before = jax_nano.executed_kernels()
    value, gradient = jax.jit(jax.value_and_grad(loss))(w)
    a, b = np.float64(x), np.float64(w)
    np.testing.assert_allclose(value, np.sin(a @ b).sum(), rtol=1e-3)
    np.testing.assert_allclose(gradient, a.T @ np.cos(a @ b), rtol=1e-3, atol=1e-3)
    assert jax_nano.executed_kernels() - before == 2, "no kernels ran"
"""
ALONE = """
compile_ours(64)
libraries = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
foreign = sorted(name for name in libraries if "LLVM" in name or "MLIR" in name)
assert not foreign, foreign
print("on", jax.__version__, "with", jax_nano._native.__file__)
"""
# What brings an LLVM of its own: how it is installed, and a function that has it compile.
BESIDE = {
    "numba": ("numba", """
import numba
def compile_theirs():
    assert numba.njit(lambda x: x * 2 + 1)(20) == 41
"""),
    "triton": ("triton", """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
@triton.jit
def store(place):
    tl.store(place, 1.0)
def compile_theirs():
    source = triton.compiler.ASTSource(store, signature={"place": "*fp32"})
    assert "store" in triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
"""),
    "torch": ("torch==2.13.0", """
import torch
def compile_theirs():
    f = torch.jit.script(torch.nn.Linear(4, 4))
    assert f(torch.ones(2, 4)).shape == (2, 4)
"""),
}  # fmt: skip


def hidden(command: list[str]) -> list[str]:
    """A command in a namespace where no LLVM of the system's can be found."""
    return ["unshare", "--map-root-user", "--mount", "bash", "-c", HIDE, "hide", *command]


def run(python: pathlib.Path, code: str, *, hide: bool = False) -> None:
    """Runs a program with caches of its own, so that it compiles."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "program.py"
        program.write_text(code)
        variables = [f"JAX_NANO_CACHE_DIR={folder}", f"TRITON_CACHE_DIR={folder}", "JAX_PLATFORMS=cpu"]
        command = ["env", *variables, str(python), str(program)]
        subprocess.run(hidden(command) if hide else command, check=True, cwd=folder)


def install(python: pathlib.Path, *packages: str) -> bool:
    """Installs packages as wheels; whether that could be done."""
    command = [str(python), "-m", "pip", "install", "-q", "--only-binary", ":all:", *packages]
    return not subprocess.run(command, check=False).returncode


def try_on(interpreter: str, folder: pathlib.Path, *, beside: bool) -> None:
    """Tries the wheel of one Python.

    Args:
      interpreter: the Python.
      folder: where to make its environment.
      beside: whether to try it beside others.

    Raises:
      SystemExit: none can be installed.
      CalledProcessError: a program failed.
    """
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    find = ["--no-index", "--find-links", str(ROOT / "dist"), "--no-deps"]
    if not (install(python, *find, "jax-nano") and install(python, "jax-nano", "--find-links", str(ROOT / "dist"))):
        sys.exit(f"{ROOT / 'dist'} has no wheel for {interpreter}; `make wheel` makes them")
    run(python, PRODUCT + ALONE, hide=True)
    for name, (package, theirs) in BESIDE.items() if beside else ():
        if not install(python, package):
            print(f"{name} cannot be installed for {interpreter}")
            continue
        both = "compile_ours(32); compile_theirs(); compile_ours(48); compile_theirs()\n"
        run(python, PRODUCT + theirs + both)
        run(python, theirs + PRODUCT + both)
        print(f"compiles beside {name}, imported before and after it")


def main() -> None:
    """Tries all that are asked for."""
    for i, python in enumerate(sys.argv[1:] or filter(None, map(interpreter, SERIES))):
        print(f"== {python}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try_on(python, pathlib.Path(folder) / "environment", beside=i == 0)


if __name__ == "__main__":
    main()
