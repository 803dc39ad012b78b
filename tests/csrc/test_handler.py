"""The custom call: what does not fit is an error that says so; on any number of threads results have the same bits."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_runner import Runner
from products import Product, matrix

from jax_nano.ir.dot import Dot, Operand
from jax_nano.machine import host
from jax_nano.runtime.kernel import TARGET_NAME
from jax_nano.runtime.kernels import kernel_for
from jax_nano.schedule.choose import choose
from jax_nano.schedule.weight_panels import panels_for

A = np.random.default_rng(0).standard_normal((24, 100)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((100, 40)).astype(np.float32)
MATRICES = (((1,), (0,)), ((), ()))
KERNEL = kernel_for(Dot.of(Operand.row_major(A.shape, "f32"), Operand.row_major(B.shape, "f32"), MATRICES, "f32"))


def call(*operands, result=((24, 40), np.float32), **attributes):
    results = [jax.ShapeDtypeStruct(*shape) for shape in ([result] if isinstance(result, tuple) else result)]
    return jax.ffi.ffi_call(TARGET_NAME, results)(*operands, **KERNEL.attributes() | attributes)[0]


def fails(text, *operands, **how):
    with pytest.raises(jax.errors.JaxRuntimeError, match=text):
        jax.block_until_ready(call(*operands, **how))


def test_a_call_that_fits():
    assert np.allclose(call(A, B), A @ B, atol=1e-4)


COUNTS = "jax_nano: the kernel was compiled for 2 operands and 1 results"


@pytest.mark.parametrize("operands", [(A,), (A, B, B), ()], ids=len)
def test_a_wrong_count_of_operands(operands):
    fails(COUNTS, *operands)


def test_the_dispatch_hint_is_not_read():
    assert np.array_equal(call(A, B, np.zeros(1024, np.int32)), call(A, B))


@pytest.mark.parametrize("last", [np.zeros(1024, np.float32), np.zeros(1023, np.int32)], ids=str)
def test_another_operand_is_no_dispatch_hint(last):
    fails(COUNTS, A, B, last)


def test_a_wrong_count_of_results():
    fails(COUNTS, A, B, result=[((24, 40), np.float32)] * 2)


@pytest.mark.parametrize("wrong", [A[:-1], A[:, :-1], A.astype(np.float16), A.view(np.int32)], ids=str)
def test_an_operand_of_another_size_or_type(wrong):
    fails("jax_nano: operand 0 differs in type or size from what the kernel was compiled for", wrong, B)


@pytest.mark.parametrize("wrong", [((24, 39), np.float32), ((24, 40), np.int32), ((1,), np.float32)], ids=str)
def test_a_result_of_another_size_or_type(wrong):
    fails("jax_nano: result 0 differs in type or size from what the kernel was compiled for", A, B, result=wrong)


def test_a_kernel_that_failed_to_load_may_be_tried_again():
    for _ in range(2):
        fails("no_such_symbol", A, B, symbols="no_such_symbol", key=np.int64(7))
    assert np.array_equal(call(A, B, key=np.int64(7)), call(A, B))


def test_an_operand_of_the_same_size_in_another_shape_fits():
    assert np.array_equal(call(A.ravel(), B), call(A, B))


@pytest.mark.parametrize("name", KERNEL.attributes())
def test_an_attribute_of_another_type(name):
    fails("jax_nano: malformed custom call", A, B, **{name: np.float32(1.5)})


@pytest.mark.parametrize("name, value", [
    ("object", b"not an object"), ("symbols", "no_such_symbol"), ("features", "avx512f,no-such-feature"),
    ("tasks", np.array([1, 1], np.int64)), ("rounds", np.int64(-1)), ("shared_bytes", np.int64(-1)),
    ("local_bytes", np.int64(1 << 62)), ("tasks", np.array([-1], np.int64)),
    ("operand_types", np.array([11], np.int64)),
])  # fmt: skip
def test_an_attribute_that_makes_no_sense(name, value):
    fails("jax_nano|this kernel|symbol|object|memory", A, B, **{name: value, "key": np.int64(hash((name, str(value))))})


def test_a_kernel_for_instructions_that_this_processor_lacks():
    text = (
        "this kernel was compiled for a processor with no-such-feature, which this one lacks; compile the program on "
    )
    fails(text, A, B, features="no-such-feature", key=np.int64(7))


@pytest.mark.parametrize("sizes", [(64, 256, 4096), (3, 5, 50_000), (1, 4096, 1024), (130, 70, 33)], ids=str)
@pytest.mark.parametrize("types", [("f32", "f32"), ("bf16", "bf16"), ("bf16", "f32")], ids=str)
def test_a_plan_for_any_number_of_threads_gives_the_same_bits(types, sizes):
    m, n, k = sizes
    dtype, out = types
    product = Product(lhs=matrix(m, k, "rows", dtype), rhs=matrix(k, n, "rows", dtype), out=out)
    operands = product.operands()
    machine = host.machine()
    plans = [choose(product.dot, replace(machine, threads=t), machine.isas[0]) for t in (1, 2, 8, 64)]
    results = [Runner(plan)(*operands) for plan in dict.fromkeys(plans)]
    for result in results[1:]:
        assert np.array_equal(result.view(np.uint8), results[0].view(np.uint8))


@pytest.mark.parametrize("dtype, sizes", [("f64", (2, 1000, 64)), ("bf16", (3, 50257, 768))], ids=str)
def test_a_plan_for_packed_weights_gives_the_same_bits_on_any_number_of_threads(dtype, sizes):
    m, n, k = sizes
    machine = host.machine()
    isa = machine.isas[0]
    panels = panels_for(dtype, k, n, machine, isa)
    weight = Operand(shape=(k, n), strides=(1, panels.rows), dtype=dtype, panels=panels)
    dot = Dot.of(Operand.row_major((m, k), dtype), weight, MATRICES, "f32" if dtype == "bf16" else dtype)
    lhs, rhs = Product(lhs=matrix(m, k, "rows", dtype), rhs=matrix(k, n, "rows", dtype), out=dot.out).operands()
    plans = [choose(dot, replace(machine, threads=t), isa) for t in (1, 2, 8, 16, 64)]
    results = [Runner(plan)(lhs, rhs) for plan in dict.fromkeys(plans)]
    for result in results[1:]:
        assert np.array_equal(result.view(np.uint8), results[0].view(np.uint8))


def test_many_threads_compile_and_run_at_once():
    barrier = threading.Barrier(8)
    x = jnp.asarray(A)

    def product(a, b):
        kernel = kernel_for(
            Dot.of(Operand.row_major(a.shape, "f32"), Operand.row_major(b.shape, "f32"), MATRICES, "f32")
        )
        shape = jax.ShapeDtypeStruct((a.shape[0], b.shape[1]), np.float32)
        return jax.ffi.ffi_call(TARGET_NAME, shape)(a, b, **kernel.attributes())

    def work(number):
        barrier.wait()
        columns = B[:, : 3 + number % 4]  # some want the same kernel
        f = jax.jit(product)
        return columns, [np.asarray(f(x, columns)) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for columns, results in pool.map(work, range(8)):
            assert np.allclose(results[0], A @ columns, atol=1e-4)
            assert all(np.array_equal(result, results[0]) for result in results)
