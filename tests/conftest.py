"""Several CPU devices for every test, and a kernel cache of the run's own; f64 where a test asks for it."""

import os
import tempfile

import jax
import pytest

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


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
