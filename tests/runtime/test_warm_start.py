"""Warm starts: a process that finds its kernels on disk plans, composes and compiles nothing."""

import json
import logging
import pathlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import normal, run_python
from products import f32_product

import jax_nano
from jax_nano.machine import host, x86
from jax_nano.runtime import cache, compiler, kernels
from jax_nano.runtime.kernel import Description, Kernel
from jax_nano.runtime.kernels import kernel_for

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import jax, jax.numpy as jnp, jax_nano
from oracle import normal
from jax_nano.runtime import compiler, kernels

def forbidden(*_):
    raise SystemExit("planned, composed or compiled what the disk holds")

if {warm}:
    kernels.choose = kernels.ranked_plans = forbidden
    compiler.build_module = compiler._native.compile = forbidden
x, w, b = normal(33, 20), normal(20, 45), normal(45)
packed, quantized = jax_nano.pack(w), jax_nano.quantize(w)
model = jax.jit(jax_nano.accelerate(lambda x: (jnp.tanh(x @ w + b), x @ packed, jax.nn.relu(x @ quantized))))
print(*(float(y.sum()) for y in (*model(x), jax_nano.matmul(x[:7], w))), jax_nano.executed_kernels())
"""


pytestmark = pytest.mark.usefixtures("own_cache")


def forget():
    """As a process that begins."""
    kernels._kernels.clear()
    cache._put.clear()


def forbid(monkeypatch, *, planning=True):
    def forbidden(*_):
        raise AssertionError("made what the disk holds")

    if planning:
        monkeypatch.setattr(kernels, "choose", forbidden)
        monkeypatch.setattr(kernels, "ranked_plans", forbidden)
    monkeypatch.setattr(compiler, "build_module", forbidden)


def test_a_second_process_plans_composes_and_compiles_nothing():
    tests = str(pathlib.Path(__file__).parents[1] / "support")
    first, second = (run_python(PROGRAM.format(tests=tests, warm=warm)) for warm in (False, True))
    assert first == second
    assert first.split()[-1] == "4"


def test_a_kernel_on_disk_is_the_one_that_was_compiled(monkeypatch):
    compiled = kernel_for(f32_product(40, 24, 56))
    plan = compiled.plan
    forget()
    with monkeypatch.context() as patch:
        forbid(patch)
        found = kernel_for(f32_product(40, 24, 56))
        assert found is not compiled
        assert (found.object, found.description, found.key) == (compiled.object, compiled.description, compiled.key)
        attributes, others = found.attributes(), compiled.attributes()
        assert attributes.keys() == others.keys()
        assert all(np.array_equal(np.asarray(attributes[name]), np.asarray(others[name])) for name in attributes)
    assert found.plan == plan, "made anew, when it is asked for"
    assert found.plan.why == plan.why
    assert found.processor == compiled.processor


def test_a_report_of_a_kernel_on_disk_has_its_plan():
    shown = str(jax_nano.inspect(jax_nano.matmul, normal(12, 34), normal(34, 56)))
    forget()
    assert str(jax_nano.inspect(jax_nano.matmul, normal(12, 34), normal(34, 56))) == shown


def test_equal_products_are_looked_up_once(monkeypatch):
    looked_up = []
    real = cache.fetch
    monkeypatch.setattr(cache, "fetch", lambda *a: looked_up.append(a) or real(*a))
    x, w = normal(5, 11), normal(11, 11)

    def f(x):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return x

    jax.jit(jax_nano.accelerate(f)).lower(x)
    assert len(looked_up) == 1


OTHER_CACHES = x86.caches((32, 8), (256, 8), (8, 16))


@pytest.mark.parametrize(
    "change",
    [{"threads": 1}, {"threads": 7}, {"ghz": 1.0}, {"caches": OTHER_CACHES}],
    ids=["one thread", "seven threads", "clock", "caches"],
)
def test_facts_of_the_processor_are_part_of_the_key(change):
    machine = host.machine()
    if change == {"threads": machine.threads}:
        pytest.skip("as it is")
    other = replace(machine, **change)
    assert kernels.machine_digest(machine) == kernels.machine_digest(replace(machine))
    assert kernels.machine_digest(machine) != kernels.machine_digest(other)


def test_targets_have_kernels_of_their_own():
    names = [isa.name for isa in host.machine().isas]
    for _ in range(2):
        assert [kernel_for(f32_product(16, 16, 16), name).plan.isa for name in names] == names
        forget()
    assert len(list(cache.directory().iterdir())) == len(names)


def test_winners_come_first_and_warm_starts_need_no_ranking(monkeypatch):
    dot = f32_product(40, 72, 24)
    kernel_for(dot)  # the cost model's choice, on disk
    result = kernels.tune_and_remember(dot)
    place = kernels.Place(host.machine(), host.machine().isas[0])
    slowest = result.seconds[-1][0]
    kernels.remember_winner(dot, place, slowest)  # another than the cost model's choice
    compiled = kernel_for(dot)
    assert compiled.plan == slowest
    forget()
    with monkeypatch.context() as patch:
        forbid(patch)
        found = kernel_for(dot)
        assert found.object == compiled.object
    assert found.plan == slowest
    assert found.plan.why == compiled.plan.why
    kernels.remember_winner(dot, place, result.seconds[0][0])
    assert kernel_for(dot).plan == result.seconds[0][0], "a later winner takes the place"


def test_without_a_disk_winners_hold_in_this_process(monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE", "0")
    dot = f32_product(40, 72, 28)
    fastest, _ = kernels.tune_and_remember(dot).seconds[0]
    assert kernel_for(dot).plan == fastest
    assert not cache.directory().exists()


def test_an_entry_of_another_form_is_compiled_anew(monkeypatch):
    dot = f32_product(9, 9, 9)
    compiled = kernel_for(dot)
    monkeypatch.setattr(cache, "load", lambda _: b"sealed, but something else")
    kernels._kernels.clear()
    assert kernel_for(dot).object == compiled.object


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": "1"},
        {"rounds": True},
        {"symbols": "ab"},
        {"tasks": [1.0]},
        {"symbols": [1]},
        {"name": None},
        {"x": 1},
    ],
    ids=str,
)
def test_descriptions_are_read_strictly(change):
    described = kernel_for(f32_product(9, 9, 9)).description
    text = described.to_json()
    assert Description.from_json(text) == described
    altered = json.loads(text) | change
    with pytest.raises(ValueError, match=r"^a description has values of other types$"):
        Description.from_json(json.dumps(altered).encode())
    del altered["features"]
    with pytest.raises(ValueError, match=r"^a description has values of other types$"):
        Description.from_json(json.dumps(altered).encode())


@pytest.mark.parametrize(
    "kept", [b"", b"\0" * 4, b"\xff" * 8, b"code" + b"[1]" + bytes([3, 0, 0, 0]), b"no json\7\0\0\0"]
)
def test_what_is_no_kernel_is_not_read(kept):
    with pytest.raises(ValueError):  # noqa: PT011, whatever json says
        Kernel.from_bytes(f32_product(9, 9, 9), kept, lambda: pytest.fail("not planned"))


def test_the_log_tells_what_was_planned_compiled_and_found(caplog):
    caplog.set_level(logging.DEBUG, "jax_nano")
    name = kernel_for(f32_product(8, 24, 40)).name
    forget()
    kernel_for(f32_product(8, 24, 40))
    jax_nano.inspect(jnp.matmul, np.ones((2, 2), np.complex64), np.ones((2, 2), np.complex64))
    planned, compiled, found, unsupported = (record.message for record in caplog.records)
    assert planned.startswith("planned in ")
    assert compiled.startswith(f"compiled {name}: composed in ")
    assert found == f"found on disk: {name}"
    assert unsupported.startswith("not supported: c64[2,2] x c64[2,2] -> c64[2,2], contracting [1] with [0]: no kernel")
