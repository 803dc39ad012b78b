"""Turns between processes: one at a time, none for ever."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jax_nano.runtime import turns

HOLD = """
import os, sys, time
from jax_nano.runtime.turns import turn
with turn(os.open(sys.argv[1], os.O_RDONLY), "file"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_turn_that_nobody_has(tmp_path, folder):
    with turns.turn(folder, "file") as waited:
        assert not waited
        assert [x.name for x in tmp_path.iterdir()] == ["file"]
    assert not [*tmp_path.iterdir()]


def test_turns_are_taken_one_at_a_time(folder):
    inside, most = [], []

    def work():
        for _ in range(20):
            with turns.turn(folder, "file"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_who_dies_gives_it_back(folder, holder):
    threading.Timer(0.2, holder.send_signal, [signal.SIGKILL]).start()
    with turns.turn(folder, "file") as waited:
        assert waited


def test_who_waits_too_long_goes_on(folder, holder, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.05)
    with turns.turn(folder, "file") as waited:
        assert waited
    assert holder.poll() is None


def test_without_locks_everyone_goes_on(folder, monkeypatch):
    def none(*_):
        raise OSError("no locks")

    monkeypatch.setattr(turns.fcntl, "flock", none)
    with turns.turn(folder, "file") as waited:
        assert not waited


COLD = """
import json, logging, jax.numpy as jnp, jax_nano
class Compiled(logging.Handler):
    count = 0
    def emit(self, record):
        self.count += record.getMessage().startswith("compiled")
handler = Compiled()
logging.getLogger("jax_nano").addHandler(handler)
logging.getLogger("jax_nano").setLevel(logging.DEBUG)
input()
for k in (64, 65, 66):
    jax_nano.matmul(jnp.ones((32, k)), jnp.ones((k, 48)))
print(json.dumps(handler.count))
"""


def test_cold_processes_compile_each_kernel_once(tmp_path):
    environment = os.environ | {"JAX_NANO_CACHE_DIR": str(tmp_path)}
    start = [sys.executable, "-c", COLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(start, env=environment, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    counts = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert 3 <= sum(counts) <= 4
    assert all(x.suffix == ".o" for x in (tmp_path / "kernels").iterdir())
