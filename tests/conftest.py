"""Several CPU devices for every test; f64 where a test asks for it."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


def pytest_configure(config):
    for marker in ("slow", "thread_unsafe", "leaks_references", "valgrind_error"):
        config.addinivalue_line("markers", f"{marker}: of NumPy's own tests")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
