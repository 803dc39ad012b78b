"""Limits of threads: of a process, of a program; no more compute than may, and bits stay."""

import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from oracle import kernels, normal

import jax_nano
from jax_nano.machine import host, thread_limit

A, B = normal(200, 300), normal(300, 260, seed=1)


@pytest.fixture(autouse=True)
def as_before():
    yield
    jax_nano.set_threads(None)


def threads_of(lowered):
    """What the calls of a program say."""
    return {int(part.split(" : ")[0]) for part in lowered.as_text().split("threads = ")[1:]}


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "2"])
def test_what_is_no_number_of_threads(n):
    text = f"{n!r} is no number of threads: whole numbers from 1 on are"
    with pytest.raises(ValueError, match=text):
        jax_nano.set_threads(n)
    with pytest.raises(ValueError, match=text), jax_nano.threads(n):
        pass


@pytest.mark.parametrize("n", [1, 2, 64, np.int64(2), None])
def test_bits_do_not_change_with_the_threads_of_the_process(n):
    expected = np.asarray(jax_nano.matmul(A, B))
    jax_nano.set_threads(n)
    with kernels(1):
        np.testing.assert_array_equal(jax_nano.matmul(A, B), expected)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_bits_do_not_change_with_the_threads_of_a_program(n):
    expected = np.asarray(jax_nano.matmul(A, B))
    with jax_nano.threads(n), kernels(1):
        np.testing.assert_array_equal(jax_nano.matmul(A, B), expected)


def test_a_program_keeps_the_threads_of_its_block():
    f = jax.jit(jax_nano.matmul)
    assert threads_of(f.lower(A, B)) == {0}
    with jax_nano.threads(1):
        assert threads_of(f.lower(A, B)) == {1}
        with jax_nano.threads(2):
            assert threads_of(f.lower(A, B)) == {2}
        assert threads_of(f.lower(A, B)) == {1}
    assert threads_of(f.lower(A, B)) == {0}


def test_every_kind_of_kernel_has_the_threads_of_its_block():
    heads = normal(1, 16, 2, 8)
    programs = {
        jax_nano.accelerate(lambda x, w: jax.nn.gelu(x @ w)): (A, B),
        jax_nano.dot_product_attention: (heads,) * 3,
        jax_nano.matmul: (A, jax_nano.pack(B)),
        jax.grad(lambda x, w: jax_nano.matmul(x, w).sum()): (A, B),
    }
    for f, args in programs.items():
        with jax_nano.threads(3):
            assert threads_of(jax.jit(f).lower(*args)) == {3}


def test_the_block_is_that_of_a_thread():
    found = {}
    with jax_nano.threads(1):
        other = threading.Thread(target=lambda: found.update(there=threads_of(jax.jit(jax_nano.matmul).lower(A, B))))
        other.start()
        other.join()
        found["here"] = threads_of(jax.jit(jax_nano.matmul).lower(A, B))
    assert found == {"there": {0}, "here": {1}}


@pytest.mark.parametrize(("environment", "asked", "expected"), [
    ("", None, 4), ("3", None, 3), ("9", None, 4), ("3", 2, 2), ("2", 3, 3), ("", 9, 4), ("2", 0, 2),
])  # fmt: skip
def test_the_limit_is_what_was_asked_for_last_or_the_environments_and_no_more_than_cores(
    monkeypatch, environment, asked, expected
):
    limits = []
    monkeypatch.setenv("JAX_NANO_THREADS", environment)
    limit = thread_limit.ThreadLimit(limits.append)
    limit.apply(cores=4)
    limit.apply(asked=asked)
    assert limits[-1] == expected
    limit.apply(cores=1)  # as when the machine is looked at later
    assert limits[-1] == 1


def test_before_the_cores_are_known_the_quota_and_all_processors_count(monkeypatch):
    limits = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(thread_limit.control_groups, "quota", lambda _: 2.5)
    thread_limit.ThreadLimit(limits.append).apply()
    assert limits == [3]


def in_process(code, **environment):
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_plans_are_made_for_the_threads_that_the_environment_allows():
    code = "import json; from jax_nano.machine import host; print(json.dumps([host.machine().threads, host.threads()]))"
    assert in_process(code, JAX_NANO_THREADS="1") == [1, 1]
    assert in_process(code, JAX_NANO_THREADS="64") == [host.topology().threads] * 2


DEVICES = """
import json, time, jax, numpy as np, jax_nano
jax.config.update("jax_num_cpu_devices", 8)
x = np.ones((8, 700, 700), np.float32)
f = jax.pmap(jax_nano.matmul)
jax.block_until_ready(f(x, x))
before, wall, processor = jax_nano.executed_kernels(), time.perf_counter(), time.process_time()
for _ in range(3):
    jax.block_until_ready(f(x, x))
ran = jax_nano.executed_kernels() - before
print(json.dumps([ran, (time.process_time() - processor) / (time.perf_counter() - wall)]))
"""


def test_eight_devices_share_one_thread():
    """csrc/test_run.cc counts threads; here is what they take: one thread's time, and what XLA does beside."""
    ran, processors = in_process(DEVICES, JAX_NANO_THREADS="1")
    assert ran == 24
    assert processors < 1.6
