"""Programs that are kept: JAX's persistent cache and serialized executables hold kernels, and not the wrong ones."""

import json
import os
import subprocess
import sys

import pytest

CHILD = """
import json, sys, jax, jax.monitoring, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
import jax_nano
from jax.experimental import serialize_executable
from jax.sharding import NamedSharding, PartitionSpec as P

what, folder = sys.argv[1:]
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
a = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
b = np.random.default_rng(1).standard_normal((96, 80)).astype(np.float32)
def f(a, b):
    return jax_nano.matmul(a, b)
args = a, b
expected = a.astype(np.float64) @ b
if "fused" in what:
    f = jax_nano.accelerate(lambda a, b: jax.nn.silu(a @ b))
    expected = expected / (1 + np.exp(-expected))
if "sharded" in what:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P("x"), P()) if "fused" in what else (P(None, "x"), P("x"))
    args = tuple(jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(args, specs))
if "save" in what:
    kept = serialize_executable.serialize(jax.jit(f).lower(*args).compile())
    open(folder + "/program", "wb").write(__import__("pickle").dumps(kept))
if "load" in what:
    kept = __import__("pickle").loads(open(folder + "/program", "rb").read())
    devices = jax.devices() if "sharded" in what else jax.devices()[:1]
    program = serialize_executable.deserialize_and_load(*kept, execution_devices=devices)
else:
    if "cache" in what:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with jax_nano.threads(1) if "one thread" in what else __import__("contextlib").nullcontext():
        program = jax.jit(f).lower(*args).compile()
before = jax_nano.executed_kernels()
result = np.asarray(program(*args))
ran = jax_nano.executed_kernels() - before
error = float(np.abs(result - expected).max())
print(json.dumps({"hit": "cache_hits" in events, "kernels": ran, "error": error}))
"""


def run(what, folder, **environment):
    command = [sys.executable, "-c", CHILD, what, str(folder)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("error") < 1e-4
    return found


@pytest.mark.parametrize(("what", "kernels"), [("cache", 1), ("cache sharded", 4), ("cache sharded fused", 4)])
def test_the_persistent_cache_holds_programs_with_kernels_apart_by_setting(tmp_path, what, kernels):
    assert run(what, tmp_path) == {"hit": False, "kernels": kernels}
    assert run(what, tmp_path) == {"hit": True, "kernels": kernels}
    assert run(what, tmp_path, JAX_NANO_TARGET="avx2") == {"hit": False, "kernels": kernels}
    assert run(what + " one thread", tmp_path) == {"hit": False, "kernels": kernels}
    assert run(what, tmp_path, JAX_NANO="0") == {"hit": False, "kernels": 0}
    assert run(what, tmp_path) == {"hit": True, "kernels": kernels}
    assert run(what, tmp_path, JAX_NANO_TARGET="avx2") == {"hit": True, "kernels": kernels}


@pytest.mark.parametrize(("what", "kernels"), [("", 1), ("sharded", 4)])
def test_a_serialized_executable_runs_its_kernels_in_another_process(tmp_path, what, kernels):
    assert run(f"save {what}", tmp_path)["kernels"] == kernels
    assert run(f"load {what}", tmp_path)["kernels"] == kernels
