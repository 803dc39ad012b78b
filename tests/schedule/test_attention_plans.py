"""Plans of attention on machines that are not at hand: blocks, splits, scratch and predicted times."""

from dataclasses import replace

import pytest

from jax_nano.ir.attention import Attention, ScoreArray
from jax_nano.ir.attention_gradient import AttentionGradient
from jax_nano.machine import x86
from jax_nano.schedule.attention.choose import choose_attention
from jax_nano.schedule.cost.attention import attention_seconds, task_cycles

MACHINES = {machine.name: machine for machine in x86.MACHINES if machine.threads}
each_machine = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
MIB = 1 << 20


def sizes(b, t, s, h, kv, d, dtype):
    return {
        "batch": b, "heads": kv, "group": h // kv, "queries": t, "keys": s, "depth": d, "value_depth": d,
        "dtype": dtype, "query": (t * h * d, h // kv * d, d, h * d, 1), "key": (s * kv * d, d, kv * d, 1),
        "value": (s * kv * d, d, kv * d, 1), "out": (t * h * d, h // kv * d, d, h * d, 1), "scale": 0.1,
    }  # fmt: skip


def plan_of(machine, *args, **options):
    return choose_attention(Attention(**sizes(*args), **options), machine, machine.isas[0])


def gradient_plan_of(machine, of, *args, **options):
    described = sizes(*args)
    problem = AttentionGradient(**described, of=of, cotangent=described["query"], **options)
    return choose_attention(problem, machine, machine.isas[0])


SHAPES = [(1, 512, 512, 12, 12, 64), (8, 197, 197, 12, 12, 64), (8, 1, 2048, 32, 8, 128), (2, 4, 3000, 32, 8, 80)]


@each_machine
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_threads(machine, shape, dtype):
    plans = [plan_of(replace(machine, threads=threads), *shape, dtype) for threads in (1, 2, 64)]
    order = [(p.instruction, p.mr, p.nr, p.key_block, p.splits, p.folds_heads) for p in plans]
    assert order[0] == order[1] == order[2]


@each_machine
def test_scratch_of_long_sequences_is_small(machine):
    machine = replace(machine, threads=64)
    plan = plan_of(machine, 1, 16384, 16384, 8, 8, 64, "bf16", causal=True)
    plans = [plan, *(gradient_plan_of(machine, of, 1, 16384, 16384, 8, 8, 64, "bf16") for of in ("queries", "keys"))]
    of_heads = 16384 * 16384, 16384 * 16384, 0, 16384, 1
    bias = ScoreArray(dtype="bf16", elements=8 * 16384 * 16384, strides=of_heads)
    plans += [
        gradient_plan_of(machine, of, 1, 16384, 16384, 8, 8, 64, "bf16", bias=bias, bias_sizes=(1, 8))
        for of in ("queries", "keys", "bias")
    ]
    for plan in plans:
        assert plan.shared_bytes + plan.local_bytes <= MIB


@each_machine
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (4, 1), (4, 8)])
def test_a_bias_that_heads_share_has_tasks_for_all_threads(machine, shape):
    batch, heads = shape
    strides = 1024**2 * heads * (batch > 1), 1024**2 * (heads > 1), 0, 1024, 1
    bias = ScoreArray(dtype="f32", elements=batch * heads * 1024**2, strides=strides)
    plan = gradient_plan_of(
        replace(machine, threads=8), "bias", 4, 1024, 1024, 8, 8, 64, "f32", bias=bias, bias_sizes=shape
    )
    assert plan.tasks["compute"] >= 8


@each_machine
def test_predictions_grow_with_work(machine):
    def seconds(t, **options):
        return plan_of(machine, 1, t, t, 12, 12, 64, "f32", **options).predicted_seconds

    assert 3 < seconds(4096) / seconds(2048) < 5
    assert seconds(4096, causal=True) < 0.6 * seconds(4096)
    assert seconds(4096, causal=True, window=(256, 0)) < 0.3 * seconds(4096)


@each_machine
def test_more_threads_take_less_time(machine):
    plan = plan_of(machine, 1, 2048, 2048, 12, 12, 64, "f32")
    one, two = (attention_seconds(plan, replace(machine, threads=2), threads) for threads in (1, 2))
    assert 1.8 < one / two < 2.05


@each_machine
def test_few_queries_wait_for_memory(machine):
    plan = plan_of(machine, 64, 1, 2048, 32, 8, 128, "bf16")
    assert plan.heads_per_task == 8
    assert plan.predicted_seconds >= plan.problem.bytes / (machine.memory_gb_per_s[1] * 1e9)


@each_machine
def test_gradients_of_keys_are_four_products_to_the_three_of_queries(machine):
    queries, keys = (gradient_plan_of(machine, of, 1, 512, 512, 12, 12, 64, "f32") for of in ("queries", "keys"))
    assert 1.1 < task_cycles(keys, machine) / task_cycles(queries, machine) < 1.4
