"""One process of several: runs sharded programs on all of their devices, and writes what its kernels did as JSON.

usage: process_of_many.py ADDRESS PROCESSES RANK [ends]

With `ends` it goes on until it fails, and the second process dies.
"""

import json
import logging
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from collectives import collectives, whole_sums
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_nano

DEVICES = 4
NUMBERS = np.random.default_rng(0).integers(-4, 5, (3, 8, 64, 64)).astype(np.float32)  # whose products are exact
A, B, W = NUMBERS[0, 0], NUMBERS[1, 0], NUMBERS[2]
SIZES = np.array([9, 0, 3, 17, 8, 8, 12, 5], np.int32)
PROGRAMS = {
    "rows": (jnp.matmul, jax_nano.matmul, [(A, P("x")), (B, P())]),
    "rows and columns": (jnp.matmul, jax_nano.matmul, [(A, P("x")), (B, P(None, "y"))]),
    "sum": (jnp.matmul, jax_nano.matmul, [(A, P(None, ("x", "y"))), (B, P(("x", "y")))]),
    "sum over one axis": (jnp.matmul, jax_nano.matmul, [(A, P("x", "y")), (B, P("y"))]),
    "sum in parts": (jnp.matmul, jax_nano.matmul, [(A, P("x", "y")), (B, P("y"))], P("x", "y")),
    "gathered": (jnp.matmul, jax_nano.matmul, [(A, P(("x", "y"))), (B, P(("x", "y")))]),
    "experts": (lax.ragged_dot, jax_nano.ragged_dot, [(A, P()), (W, P(("x", "y"))), (SIZES, P())]),
}


class Compiled(logging.Handler):
    """The kernels that this process compiled."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.names = []

    def emit(self, record):
        if record.getMessage().startswith("compiled"):
            self.names.append(record.getMessage().split()[1].rstrip(":"))


def run(mesh, plain, ours, operands, *out) -> int:
    """Runs a program as JAX has it and with kernels; gives how many kernels ran."""
    args = [
        jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index, x=x: x[index])
        for x, spec in operands
    ]
    result = NamedSharding(mesh, *out) if out else None
    programs = [jax.jit(f, out_shardings=result).lower(*args).compile() for f in (plain, ours)]
    expected, found = map(collectives, programs)
    assert whole_sums(found, expected) <= expected
    before = jax_nano.executed_kernels()
    expected, result = (jax.block_until_ready(program(*args)) for program in programs)
    assert result.sharding.is_equivalent_to(expected.sharding, result.ndim)
    for x, y in zip(result.addressable_shards, expected.addressable_shards, strict=True):
        np.testing.assert_array_equal(x.data, y.data)
    return jax_nano.executed_kernels() - before


def main() -> None:
    address, processes, rank, *ends = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", DEVICES // int(processes))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timeout = 3 if ends else 30
    jax.distributed.initialize(address, int(processes), int(rank), heartbeat_timeout_seconds=timeout)
    compiled = Compiled()
    logging.getLogger("jax_nano").addHandler(compiled)
    logging.getLogger("jax_nano").setLevel(logging.DEBUG)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    while ends:
        run(mesh, *PROGRAMS["sum"])
        if rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
    ran = {name: run(mesh, *program) for name, program in PROGRAMS.items()}
    sys.stdout.write(json.dumps({"ran": ran, "compiled": compiled.names}) + "\n")
    jax.distributed.shutdown()


main()
