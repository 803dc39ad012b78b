"""Exported programs: of JAX's operations by default, for one platform and several; with kernels where asked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import kernels, normal

import jax_nano
from jax_nano.runtime import kernel
from jax_nano.runtime.kernels import kernel_for

PRODUCT: Any = jax_nano.matmul  # with weights, too
X, W, ROW = normal(8, 32), normal(32, 48, seed=1), normal(48, seed=2)
IMAGE, TAPS = normal(2, 3, 8, 8), normal(4, 3, 3, 3, seed=1)
HEADS = tuple(normal(1, 16, 2, 8, seed=seed) for seed in range(3))


def fused(x, w, row):
    return jax_nano.fused_matmul(x, w, row, epilogue=lambda acc, row: jax.nn.gelu(acc + row))


# A function, what it is called with, and how many kernels its program has.
PROGRAMS = {
    "matmul": (jax_nano.matmul, (X, W), 1),
    "fused_matmul": (fused, (X, W, ROW), 1),
    "accelerate": (jax_nano.accelerate(lambda x, w, row: jax.nn.relu(x @ w + row)), (X, W, ROW), 1),
    "pack": (jax_nano.matmul, (X, jax_nano.pack(W)), 1),
    "quantize": (jax_nano.matmul, (X, jax_nano.quantize(W)), 1),
    "quantize to 4 bits": (jax_nano.matmul, (X, jax_nano.quantize(W, bits=4, symmetric=False)), 1),
    "int8 activations": (jax_nano.matmul, (X, jax_nano.quantize(W, activations="int8")), 1),
    "packed inside": (lambda x, w: PRODUCT(x, jax_nano.pack(w)), (X, W), 1),
    "attention": (jax_nano.dot_product_attention, HEADS, 1),
    "convolution": (lambda x, w: jax_nano.conv(x, w, (1, 1), "SAME"), (IMAGE, TAPS), 1),
    "gradient": (jax.grad(lambda x, w: jax_nano.matmul(x, w).sum()), (X, W), 1),
    "gradient of attention": (jax.grad(lambda *x: jax_nano.dot_product_attention(*x).sum()), HEADS, None),
    "scan": (
        jax_nano.accelerate(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=3)[0]), (X[:, :8],), None
    ),
}  # fmt: skip
PLATFORMS = [("cpu",), ("cpu", "tpu"), ("cuda", "cpu", "rocm"), ("tpu",)]


def custom_calls(exported):
    return exported.mlir_module().count(f"@{kernel.TARGET_NAME}(")


def exported_with_kernels(f, *args, **how):
    with jax_nano.exporting_kernels():
        return export.export(jax.jit(f), disabled_checks=jax_nano.export_checks(), **how)(*args)


def close(result, expected):
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("platforms", PLATFORMS, ids=", ".join)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_exported_program_holds_jaxs_operations(program, platforms):
    f, args, _ = PROGRAMS[program]
    exported = export.export(jax.jit(f), platforms=platforms)(*args)
    assert custom_calls(exported) == 0
    if "cpu" in platforms:
        with kernels(0):
            result = exported.call(*args)
        close(result, jax.jit(f)(*args))


@pytest.mark.parametrize("platforms", PLATFORMS[:3], ids=", ".join)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_exported_program_keeps_its_kernels_where_asked(program, platforms):
    f, args, count = PROGRAMS[program]
    exported = exported_with_kernels(f, *args, platforms=platforms)
    if count is None:
        assert custom_calls(exported) > 0 or program == "scan"
    else:
        assert custom_calls(exported) == count
        expected = jax.jit(f)(*args)
        with kernels(count):
            np.testing.assert_array_equal(exported.call(*args), expected)


def test_kernels_are_for_cpus_only():
    assert custom_calls(exported_with_kernels(jax_nano.matmul, X, W, platforms=["tpu"])) == 0


@pytest.mark.parametrize("platforms", PLATFORMS, ids=", ".join)
@pytest.mark.parametrize("kept", [False, True])
def test_what_is_installed(platforms, kept):
    with jax_nano.installed():
        if kept:
            exported = exported_with_kernels(jnp.matmul, X, W, platforms=platforms)
        else:
            exported = export.export(jax.jit(jnp.matmul), platforms=platforms)(X, W)
    assert custom_calls(exported) == (kept and "cpu" in platforms)


def test_without_the_checks_jaxs_error_says_which_call_is_not_stable():
    with jax_nano.exporting_kernels(), pytest.raises(ValueError, match=r"(?s)custom calls.*@jax_nano"):
        export.export(jax.jit(jax_nano.matmul))(X, W)


def test_the_context_is_part_of_the_keys_of_jaxs_caches():
    f = jax.jit(jax_nano.matmul)  # one function, exported both ways
    for _ in range(2):
        with jax_nano.exporting_kernels():
            assert custom_calls(export.export(f, disabled_checks=jax_nano.export_checks())(X, W)) == 1
        assert custom_calls(export.export(f)(X, W)) == 0


def test_a_program_that_is_partitioned_has_jaxs_operations_in_either_way():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    args = [jax.device_put(x, NamedSharding(mesh, P(*spec))) for x, spec in ((X, ("x",)), (W, ()))]
    for exported in (export.export(jax.jit(jax_nano.matmul))(*args), exported_with_kernels(jax_nano.matmul, *args)):
        assert kernel.TARGET_NAME not in exported.mlir_module().replace(__file__, "").split("loc(")[0]
        close(exported.call(*args), X @ W)


def test_a_symbolic_size_is_jaxs_in_either_way():
    (m,) = export.symbolic_shape("m")
    args = jax.ShapeDtypeStruct((m, 32), jnp.float32), W
    for exported in (export.export(jax.jit(jax_nano.matmul))(*args), exported_with_kernels(jax_nano.matmul, *args)):
        assert custom_calls(exported) == 0
        close(exported.call(X, W), X @ W)


def test_a_gradient_of_an_exported_program():
    exported = export.export(jax.jit(jax_nano.matmul))(X, W)
    reread = exported.vjp() if exported.has_vjp() else export.deserialize(exported.serialize(vjp_order=1)).vjp()
    da, db = reread.call(X, W, jnp.ones((8, 48)))
    close(da, np.ones((8, 48)) @ W.T)
    close(db, X.T @ np.ones((8, 48)))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("program", ["matmul", "pack", "quantize", "quantize to 4 bits", "attention"])
def test_a_program_from_disk(program, kept):
    pytest.importorskip("flatbuffers")
    f, args, count = PROGRAMS[program]
    exported = exported_with_kernels(f, *args) if kept else export.export(jax.jit(f))(*args)
    again = export.deserialize(exported.serialize())
    assert again.in_tree == exported.in_tree
    with kernels(count if kept else 0):
        result = again.call(*args)
    close(result, f(*args))


def test_another_format_is_an_error_when_the_program_is_loaded(monkeypatch):
    monkeypatch.setattr(kernel, "FORMAT", 2)
    exported = exported_with_kernels(lambda x, w: jax_nano.matmul(x, w[:, :5]), X, W)
    text = (
        "jax_nano: this program's kernels are of format 2, and this jax_nano reads format 1; "
        "export or compile the program anew, or run it with the jax_nano that made it"
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match=text):
        exported.call(X, W)


def test_a_lacking_instruction_set_is_an_error_when_the_program_is_loaded(monkeypatch):
    of = kernel.Description.of.__func__
    monkeypatch.setattr(
        kernel.Description, "of",
        classmethod(lambda cls, plan, processor: of(cls, plan, kernel.Processor("x86-64-v3", "+no-such-set", ""))),
    )  # fmt: skip
    exported = exported_with_kernels(lambda x, w: jax_nano.matmul(x, w[:, :7]), X, W)
    text = "jax_nano: this kernel was compiled for a processor with no-such-set, which this one lacks; compile the prog"
    with pytest.raises(jax.errors.JaxRuntimeError, match=text):
        exported.call(X, W)


def test_every_call_says_its_format():
    from jax_nano.ir.dot import Dot, Operand

    dot = Dot.of(Operand.row_major((8, 32), "f32"), Operand.row_major((32, 48), "f32"), (((1,), (0,)), ((), ())), "f32")
    assert kernel_for(dot).attributes()["format"] == kernel.FORMAT == 1
