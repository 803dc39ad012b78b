import pytest

from jax_nano import _native

from . import emulator
from .kernels import AMX

OTHER = {
    "emulated": "this processor executes AMX itself: nothing traps",
    "native": "this processor has no AMX: Linux does not list amx_tile in /proc/cpuinfo",
}
FEATURES = sorted({feature for i in AMX.dots for feature in (*AMX.features, *i.features)})


@pytest.fixture(scope="session", params=["emulated", "native"])
def amx(request):
    """How AMX instructions run in this process: "emulated" or "native"."""
    if request.param != emulator.install():
        pytest.skip(OTHER[request.param])
    return request.param


@pytest.fixture
def here(amx, monkeypatch):
    """Programs take AMX kernels, and run them."""
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    if amx == "native":
        yield
        return
    _native._assume_features(",".join(FEATURES))
    yield
    _native._assume_features("")
