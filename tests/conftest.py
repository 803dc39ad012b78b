"""Several CPU devices for every test, and a kernel cache of the run's own; f64 or AMX where a test asks for it."""

import logging
import os
import tempfile

import jax
import pytest
from amx import emulator
from amx.selection import NEEDED, present_here, way

from jax_nano import _native
from jax_nano.lowering import program_cost
from jax_nano.machine.x86 import AMX

jax.config.update("jax_num_cpu_devices", 4)
# Of the whole run: its workers inherit the name.
KERNELS = tempfile.TemporaryDirectory(prefix="jax_nano_tests_") if "PYTEST_XDIST_WORKER" not in os.environ else None
if KERNELS:
    os.environ["JAX_NANO_CACHE_DIR"] = KERNELS.name


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the files of tests/golden anew")


def pytest_configure(config):
    for marker in ("slow", "thread_unsafe", "leaks_references", "valgrind_error"):
        config.addinivalue_line("markers", f"{marker}: of NumPy's own tests")


def pytest_report_header():
    ways = {name: way(needed, present_here()) or "left out" for name, needed in NEEDED.items()}
    return "AMX: " + ", ".join(f"{name} {how}" for name, how in ways.items())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks what runs AMX, and leaves out what is about processors without it where there is AMX."""
    for item in items:
        if "amx" in item.fixturenames:
            item.add_marker("amx")
    if way(AMX.features, present_here()) == "native":
        left_out = [item for item in items if item.get_closest_marker("emulator")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


class Errors(logging.Handler):
    """What the logger `jax_nano` reports."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


@pytest.fixture(autouse=True)
def nothing_fell_back(request):
    """Fails a test in which a kernel could not be compiled, since programs run all the same then."""
    logger, errors = logging.getLogger("jax_nano"), Errors()
    logger.addHandler(errors)
    yield
    logger.removeHandler(errors)
    if errors.found and not request.node.get_closest_marker("breaks_the_compiler"):
        pytest.fail("\n".join(errors.found))


@pytest.fixture(autouse=True)
def one_kernel_each(request, monkeypatch):
    """Has every product be a kernel of its own, as tests count them, but for tests of whole programs as one kernel."""
    if request.path.parent.name != "programs":
        monkeypatch.setattr(program_cost, "is_small", lambda _: False)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def amx():
    """How AMX instructions run in this process, which is prepared for them: "emulated" or "native"."""
    return emulator.install()


@pytest.fixture
def here(amx, monkeypatch):
    """Programs take AMX kernels, and run them."""
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    if amx == "native":
        yield
        return
    _native._assume_features(",".join(sorted(set().union(*NEEDED.values()))))
    yield
    _native._assume_features("")
