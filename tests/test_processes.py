"""Programs over several processes: kernels in each, plain jit's collectives, and none is left waiting."""

import collections
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

PROCESS = pathlib.Path(__file__).parent / "support" / "process_of_many.py"
DEVICES = 4


@pytest.fixture
def start(tmp_path):
    """Starts processes that share an empty cache; whatever is left of them is ended."""
    started = []

    def processes(count, *arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {"JAX_NANO_CACHE_DIR": str(tmp_path), "JAX_NANO_THREADS": "1"}
        for rank in map(str, range(count)):
            command = [sys.executable, str(PROCESS), address, str(count), rank, *arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        return started

    yield processes
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("count", [2, 4])
def test_each_runs_kernels_and_compiles_few_of_them(start, count, tmp_path):
    processes = start(count)
    found = []
    for process in processes:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    for each in found:
        assert set(each["ran"].values()) == {DEVICES // count}
    compiled = collections.Counter(name for each in found for name in each["compiled"])
    kept = [*(tmp_path / "kernels").iterdir()]
    assert all(x.suffix == ".o" for x in kept)
    assert len(kept) <= compiled.total() <= len(kept) + 1


def test_one_that_dies_ends_the_others(start, tmp_path):
    """By the error of the collective that the others wait in, and the coordinator's timeout: no launcher ends them."""
    first, second = start(2, "ends")
    _, err = first.communicate(timeout=60)
    assert second.wait(timeout=1) < 0
    assert first.returncode != 0
    assert "Gloo all-reduce failed" in err or "heartbeat timeout" in err
    assert all(x.suffix == ".o" for x in (tmp_path / "kernels").iterdir())
