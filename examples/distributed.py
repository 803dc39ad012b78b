"""Trains a small decoder over several processes of JAX's distributed runtime: data, tensor and expert parallelism.

usage: python examples/distributed.py --processes 4                     (all on this machine)
       python examples/distributed.py --processes 4 --rank 0 --coordinator host:1234    (one on each of 4 machines)

Processes form a mesh of two axes. Along `data` each has its part of the batch; along `model` its part of the heads, of
the feed-forward layers' columns and of the experts. Every array says by which axes it is sharded, XLA inserts what
processes have to exchange, and every process runs jax_nano's kernels on its shards. Losses are those of one process,
within rounding.

The text, examples/sonnets.txt, is 32 of the 154 sonnets by Shakespeare of 1609; it is in the public domain.
"""

import argparse
import functools
import math
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_nano
from jax_nano.runtime.progress import progress

TEXT = pathlib.Path(__file__).with_name("sonnets.txt")
HEADS = 8
EXPERTS = 4  # in every layer: a router mixes the best two of a character
TIMEOUT_SECONDS = 20  # after which processes give up one that is silent
RATE, MOMENTUM = 0.05, 0.9
REPORTS = 5

Params = dict[str, Any]
SHARDED = {  # of each layer's parameters; the others are whole on every process
    "qkv": P(None, None, "model"), "out": P("model"), "up": P("model"), "down": P("model"),
}  # fmt: skip


def initial_params(width: int, layers: int, characters: int) -> Params:
    """Normal weights, by the square root of what is summed."""
    sizes = {
        "qkv": (width, 3, HEADS, width // HEADS), "out": (HEADS, width // HEADS, width), "route": (width, EXPERTS),
        "up": (EXPERTS, width, 2 * width), "down": (EXPERTS, 2 * width, width),
    }  # fmt: skip
    keys = iter(jax.random.split(jax.random.key(0), layers * len(sizes) + 2))

    def normal(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape) / math.sqrt(width)

    blocks = [{name: normal(*shape) for name, shape in sizes.items()} for _ in range(layers)]
    return {"embed": normal(characters, width), "read": normal(width, characters), "blocks": blocks}


def shardings(params: Params, mesh: Mesh) -> Params:
    """How every parameter is sharded."""
    return jax.tree.map_with_path(lambda path, _: NamedSharding(mesh, SHARDED.get(path[-1].key, P())), params)


def norm(x: Array) -> Array:
    """Rows of length sqrt(width)."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def block(x: Array, p: Params) -> Array:
    """One layer: attention, then the experts."""
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dche->btche", norm(x), p["qkv"]), 2, 0)
    x += jnp.einsum("bthe,hed->btd", jax.nn.dot_product_attention(q, k, v, is_causal=True), p["out"])
    y = norm(x)
    logits = y @ p["route"]
    best = jax.lax.top_k(logits, 2)[0][..., -1:]
    weights = jax.nn.softmax(jnp.where(logits >= best, logits, -jnp.inf))
    hidden = jax.nn.gelu(jnp.einsum("btd,edf->ebtf", y, p["up"]))
    return x + jnp.einsum("ebtf,efd,bte->btd", hidden, p["down"], weights)


def loss_of(params: Params, text: Array) -> Array:
    """How surprising each character is after those before it, in nats."""
    x = functools.reduce(block, params["blocks"], params["embed"][text[:, :-1]])
    logits = norm(x) @ params["read"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), text[:, 1:, None], -1))


@jax_nano.accelerate
def train_step(params: Params, speeds: Params, text: Array) -> tuple[Params, Params, Array]:
    """A step of gradient descent with momentum."""
    loss, grads = jax.value_and_grad(loss_of)(params, text)
    speeds = jax.tree.map(lambda v, g: MOMENTUM * v + g, speeds, grads)
    return jax.tree.map(lambda p, v: p - RATE * v, params, speeds), speeds, loss


def batches(args: argparse.Namespace, text: np.ndarray, sharding: NamedSharding):
    """Pieces of the text, of which every process makes its own."""
    rng = np.random.default_rng(0)
    for _ in range(args.steps):
        starts = rng.integers(0, len(text) - args.length - 1, args.batch)
        whole = text[starts[:, None] + np.arange(args.length + 1)]
        yield jax.make_array_from_callback(whole.shape, sharding, lambda index, whole=whole: whole[index])


def train(args: argparse.Namespace) -> None:
    """What each process does; the first one says how it goes."""
    shape = (args.processes // args.model, args.model)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    characters = sorted(set(TEXT.read_text()))
    text = np.array([characters.index(x) for x in TEXT.read_text()], np.int32)
    make = functools.partial(initial_params, args.width, args.layers, len(characters))
    placed = shardings(jax.eval_shape(make), mesh)
    params = jax.jit(make, out_shardings=placed)()
    speeds = jax.jit(lambda: jax.tree.map(jnp.zeros_like, make()), out_shardings=placed)()
    step = jax.jit(train_step, donate_argnums=(0, 1), out_shardings=(placed, placed, NamedSharding(mesh, P())))
    kernels = jax_nano.executed_kernels()
    label = "training" if jax.process_index() == 0 else ""
    start, rate, losses = time.perf_counter(), 0.0, []
    with progress(args.steps, label) as bar:
        for i, batch in enumerate(batches(args, text, NamedSharding(mesh, P("data")))):
            params, speeds, loss = step(params, speeds, batch)
            losses.append(float(loss))
            start = time.perf_counter() if i == 0 else start  # the first step compiles
            rate = i * args.batch * args.length / (time.perf_counter() - start)
            bar.advance(f"step {i + 1}, loss {losses[-1]:.4f}, {rate:,.0f} tokens/s")
    kernels = jax_nano.executed_kernels() - kernels
    if jax.process_index() == 0:
        for i in sorted({*range(0, args.steps, max(1, args.steps // REPORTS)), args.steps - 1}):
            print(f"step {i + 1:4}  loss {losses[i]:.5f}")
        print(f"{rate:,.0f} tokens/s, mesh {shape[0]} x {shape[1]}, {kernels // args.steps} kernels a step and process")


def join(args: argparse.Namespace) -> None:
    """Joins the other processes, and trains with them."""
    jax.config.update("jax_num_cpu_devices", 1)
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            args.coordinator, args.processes, args.rank,
            initialization_timeout=3 * TIMEOUT_SECONDS, heartbeat_timeout_seconds=TIMEOUT_SECONDS,
        )  # fmt: skip
    train(args)
    if args.processes > 1:
        jax.distributed.shutdown()


def start_all(args: argparse.Namespace) -> int:
    """Starts the processes on this machine, threads divided between them; gives the exit status of the first to fail.

    Where one fails, the others are ended: they could only wait for it.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    threads = max(1, len(os.sched_getaffinity(0)) // args.processes)
    environment = {"JAX_NANO_THREADS": str(threads)} | os.environ
    command = [sys.executable, __file__, *sys.argv[1:], "--coordinator", address]
    processes = [subprocess.Popen([*command, "--rank", str(i)], env=environment) for i in range(args.processes)]
    try:
        while any(process.poll() is None for process in processes):
            failed = next((i for i, process in enumerate(processes) if process.poll()), None)
            if failed is not None:
                status = processes[failed].returncode
                how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
                print(f"process {failed} of {args.processes} {how}: the others are ended", file=sys.stderr)
                return status if status > 0 else 1
            time.sleep(0.05)
        return next((process.returncode for process in processes if process.returncode), 0)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    """Starts all processes, or is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many there are")
    parser.add_argument("--model", type=int, help="how many of them share a copy of the model; by default two, if even")
    parser.add_argument("--rank", type=int, help="which one this is, where each is started by itself")
    parser.add_argument("--coordinator", help="host:port of the first, likewise")
    for name, value in {"steps": 50, "batch": 16, "length": 64, "width": 128, "layers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.model = args.model or (2 if args.processes % 2 == 0 else 1)
    if (
        args.processes % args.model
        or math.gcd(HEADS, EXPERTS) % args.model
        or args.batch % (args.processes // args.model)
    ):
        parser.error(
            f"--model {args.model} has to divide --processes {args.processes}, {HEADS} heads and {EXPERTS} experts, "
            f"and what that leaves of processes the batch of {args.batch}"
        )
    if args.rank is None and args.processes > 1:
        return start_all(args)
    join(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
