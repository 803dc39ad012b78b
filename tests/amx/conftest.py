import pytest

from . import emulator

OTHER = {
    "emulated": "this processor executes AMX itself: nothing traps",
    "native": "this processor has no AMX: Linux does not list amx_tile in /proc/cpuinfo",
}


@pytest.fixture(scope="session", params=["emulated", "native"])
def amx(request):
    """How AMX instructions run in this process: "emulated" or "native"."""
    if request.param != emulator.install():
        pytest.skip(OTHER[request.param])
    return request.param
