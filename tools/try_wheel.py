"""Installs wheels of dist/ into fresh environments, and runs them where no LLVM is.

usage: python tools/try_wheel.py [PYTHON ...]

For each Python (by default all that are found) the wheel for it is installed, with every JAX that goes with both. A
program with a product and its gradient runs in a mount namespace where the system's LLVM and MLIR are hidden, which
takes root or user namespaces. With the oldest and the newest, jax_nano and each of BESIDE that can be
installed, which bring LLVMs of their own, also compile in one process, imported in either order.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from matrix import OLDEST_PYTHON
from pythons import SERIES, interpreter, version

ROOT = pathlib.Path(__file__).parents[1]
HIDE = """
set -euo pipefail
for place in /usr/lib/llvm-* /usr/local/lib /opt/llvm*; do
  if [ -d "$place" ]; then mount -t tmpfs none "$place"; fi
done
found=$(/sbin/ldconfig -p | sed -n 's/.*=> \\(.*lib\\(LLVM\\|MLIR\\).*\\)/\\1/p')
for file in $found; do
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
import ctypes, subprocess
for name in ("libLLVM.so.22.1", "libLLVM-22.so", "libMLIR.so.22.1"):
    try:
        ctypes.CDLL(name)
    except OSError:
        continue
    raise SystemExit(f"{name} is not hidden")
compile_ours(64)
print(subprocess.run(["ldd", jax_nano._native.__file__], check=True, capture_output=True, text=True).stdout.strip())
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
        variables = [
            f"JAX_NANO_CACHE_DIR={folder}",
            f"TRITON_CACHE_DIR={folder}",
            "JAX_PLATFORMS=cpu",
            f"HOME={folder}",
        ]
        command = ["env", "-i", f"PATH={os.environ['PATH']}", *variables, str(python), str(program)]
        subprocess.run(hidden(command) if hide else command, check=True, cwd=folder)


def install(python: pathlib.Path, *packages: str) -> bool:
    """Installs packages as wheels; whether that could be done."""
    command = [str(python), "-m", "pip", "install", "-q", "--only-binary", ":all:", *packages]
    return not subprocess.run(command, check=False).returncode


def try_on(interpreter: str, folder: pathlib.Path, beside: tuple[str, ...]) -> None:
    """Tries the wheel of one Python.

    Args:
      interpreter: the Python.
      folder: where to make its environment.
      beside: the names in BESIDE to try it with.

    Raises:
      SystemExit: none can be installed, or nothing that is to be tried beside it.
      CalledProcessError: a program failed.
    """
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    find = ["--no-index", "--find-links", str(ROOT / "dist"), "--no-deps"]
    if not (install(python, *find, "jax-nano") and install(python, "jax-nano", "--find-links", str(ROOT / "dist"))):
        sys.exit(f"{ROOT / 'dist'} has no wheel for {interpreter}; `make wheel` makes them")
    for jax in series_of_jax(python):
        install(python, f"jax=={jax}.*", f"jaxlib=={jax}.*")
        run(python, PRODUCT + ALONE, hide=True)
    tried = [name for name in beside if try_beside(python, name)]
    if beside and not tried:
        sys.exit(f"none of {', '.join(beside)} can be installed")


def series_of_jax(python: pathlib.Path) -> list[str]:
    """Those that have wheels for a Python, the oldest first."""
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    own = version(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    return [jax for jax, least in OLDEST_PYTHON.items() if own >= version(least)]


def try_beside(python: pathlib.Path, name: str) -> bool:
    """Has jax_nano and another compile in one process; whether the other could be installed."""
    package, theirs = BESIDE[name]
    if not install(python, package):
        print(f"{name} cannot be installed for {python}")
        return False
    both = "compile_ours(32); compile_theirs(); compile_ours(48); compile_theirs()\n"
    run(python, PRODUCT + theirs + both)
    run(python, theirs + PRODUCT + both)
    print(f"compiles beside {name}, imported before and after it", flush=True)
    return True


def main() -> None:
    """Tries all that are asked for."""
    if subprocess.run(hidden(["true"]), check=False).returncode:
        sys.exit(
            "no namespace without LLVM can be made: this takes root, or user namespaces (in a container, --privileged)"
        )
    pythons = sys.argv[1:] or [python for python in map(interpreter, SERIES) if python]
    for python in pythons:
        print(f"== {python}", flush=True)
        # PyPI's torch for the newest Python brings gigabytes of CUDA.
        beside = tuple(BESIDE) if python == pythons[0] else ("numba", "triton") if python == pythons[-1] else ()
        with tempfile.TemporaryDirectory() as folder:
            try_on(python, pathlib.Path(folder) / "environment", beside)


if __name__ == "__main__":
    main()
