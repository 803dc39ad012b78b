"""The house rules of docs/architecture.md that a reader cannot see in one file."""

import ast
import pathlib
import shutil

import pytest
from oracle import run_python

import jax_nano
from jax_nano.machine import x86

PACKAGE = pathlib.Path(jax_nano.__file__).parent
# A room may use what stands in its own line or below.
ORDER = (
    ("__init__", "__main__"),
    ("api",),
    ("lowering",),
    ("weights",),
    ("runtime",),
    ("codegen",),
    ("schedule",),
    ("jaxpr", "machine"),
    ("ir", "config", "_native"),
)
# Rooms of one line that may not use each other.
APART = {("jaxpr", "machine"), ("machine", "jaxpr"), ("schedule", "jaxpr"), ("ir", "_native")}
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(name):
    return pathlib.PurePath(name).parts[0].removesuffix(".py")


def module(name):
    """What a file is imported as."""
    parts = ("jax_nano", *pathlib.PurePath(name).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name):
    """Every module, and every name in one, that a file imports when it runs, at any place in it."""
    found = set()
    tree = ast.parse(FILES[name].read_text())
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(name):
    """The rooms that a file imports from."""
    return {module.split(".")[1] for module in imports(name) if module.startswith("jax_nano.")}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_only_downwards(name):
    assert room(name) in LEVEL, f"give {name} its place in ORDER and in docs/architecture.md"
    upwards = {used for used in uses(name) if LEVEL.get(used, len(ORDER)) < LEVEL[room(name)]}
    assert not upwards, f"{name} imports {sorted(upwards)} from above"
    aside = {used for used in uses(name) if (room(name), used) in APART}
    assert not aside, f"{name} imports {sorted(aside)} from beside it"


def test_no_import_goes_in_circles():
    files = {module(name): name for name in FILES}
    left = {name: {files[m] for i in imports(name) for m in (i, i.rpartition(".")[0]) if m in files} for name in FILES}
    del left["__init__.py"], left["__main__.py"]  # which import all others
    while ready := [name for name, others in left.items() if not (others - {name}) & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


@pytest.mark.parametrize("package", ["ir", "machine", "schedule"])
def test_plans_are_made_without_jax_and_mlir_and_the_extension(package):
    files = [name for name in FILES if room(name) == package and not name.endswith("host.py")]
    code = "import sys, " + ", ".join(map(module, files)) + "\nprint(*sys.modules)"
    loaded = {name.split(".")[0] if "_native" not in name else "_native" for name in run_python(code).split()}
    assert not loaded & {"jax", "jaxlib", "mlir", "_native"}


def test_sources_that_were_not_installed_have_no_version():
    code = """
import importlib.metadata
def version(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
import jax_nano
from jax_nano import *
from jax_nano.runtime.compiler import versions
print(jax_nano.__version__, versions()["jax_nano"])
"""
    assert run_python(code) == "unknown unknown\n"


def test_a_source_tree_that_is_not_built_says_so(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jax_nano", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = (
        f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__.lower()]; "
        f"sys.path.insert(0, {str(tmp_path)!r})\nimport jax_nano\n"
        "try:\n    jax_nano.matmul\nexcept ImportError as error:\n    print(error)"
    )
    assert f"{tmp_path}/jax_nano is a source tree whose extension is not built" in run_python(code)


def test_what_is_loaded_again_is_as_old_as_it_was():
    code = "import importlib, jax_nano\nns = jax_nano.LOADED_NS\nprint(importlib.reload(jax_nano).LOADED_NS == ns)"
    assert run_python(code) == "True\n"


@pytest.mark.parametrize("name", [f for f in FILES if room(f) in ("codegen", "schedule")])
def test_only_targets_know_their_names(name):
    names = {isa.name for machine in x86.MACHINES for isa in machine.isas} | {machine.name for machine in x86.MACHINES}
    literals = {
        node.value
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not literals & names


def lines(function):
    """How many lines a function has, without its docstring."""
    documented = ast.get_docstring(function) is not None
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short_enough_to_hold_in_mind(name):
    text = FILES[name].read_text()
    assert text.count("\n") <= 350
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert not {function.name: lines(function) for function in functions if lines(function) > 40}
