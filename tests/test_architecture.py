"""The house rules of docs/architecture.md that a reader cannot see in one file."""

import ast
import pathlib

import pytest

import jax_nano
from jax_nano.targets import x86

PACKAGE = pathlib.Path(jax_nano.__file__).parent
# A room may use what stands in its own line or below.
ORDER = (
    ("__init__", "__main__"),
    ("autotune",),
    ("accelerate", "api", "fused_matmul", "inspection", "installation", "memory", "roofline"),
    ("fused",),
    ("fusion",),
    ("region", "activations"),
    ("layout", "scatters", "sums"),
    ("steps",),
    ("values",),
    ("primitive", "packed", "quantized"),
    ("algorithm", "custom_call", "rebind", "report", "jaxprs", "views", "tuning"),
    ("compiler",),
    ("emit", "cache"),
    ("kernels",),
    ("panels",),
    ("schedule",),
    ("targets", "model", "build", "division"),
    ("plan", "problem", "elementwise", "elementwise_jaxpr", "isa", "dtypes", "weights", "_native"),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(name):
    return pathlib.PurePath(name).parts[0].removesuffix(".py")


def imports(name):
    """Every module that a file imports when it runs, at any place in it."""
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


@pytest.mark.parametrize("name", ["model/__init__.py", "schedule.py"])
def test_plans_are_made_without_jax_and_mlir(name):
    seen, ahead = set(), [name]
    while ahead:
        current = ahead.pop()
        seen.add(current)
        outside = {module.split(".")[0] for module in imports(current)}
        assert not outside & {"jax", "jaxlib"}, f"{name} reaches {current}, which imports jax"
        # elementwise_jaxpr.py makes programs out of jaxprs, where one is at hand; plans only carry programs.
        ahead += [f for f in FILES if room(f) in uses(current) and f not in seen and f != "elementwise_jaxpr.py"]


@pytest.mark.parametrize(
    "name", [f for f in FILES if room(f) in ("kernels", "emit", "build", "model", "schedule", "plan")]
)
def test_only_targets_know_their_names(name):
    names = {isa.name for machine in x86.MACHINES for isa in machine.isas} | {machine.name for machine in x86.MACHINES}
    literals = {
        node.value
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not literals & names
