"""Several CPU devices for every test; f64 where a test asks for it."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
