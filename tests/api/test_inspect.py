"""What inspect() and the command line say is what programs do."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest
from oracle import kernels, normal

import jax_nano
from jax_nano import __main__ as command_line
from jax_nano.machine import host

X, W = normal(64, 32), normal(32, 16)
TARGETS = [isa.name for isa in host.machine().isas]


def test_a_kernel():
    (report,) = jax_nano.inspect(jax_nano.matmul, X, W)
    assert report.ran_as == "kernel"
    assert report.reason == ""
    assert report.equation == "f32[64,32] x f32[32,16] -> f32[64,16], contracting [1] with [0]"
    assert report.problem and report.plan and report.kernel and report.mlir and report.llvm_ir and report.assembly
    assert report.problem.sizes == (1, 64, 16, 32)
    assert report.plan.isa in TARGETS
    assert report.kernel.name in report.mlir
    assert report.kernel.name in report.llvm_ir
    assert report.kernel.name in report.assembly
    assert "vfmadd" in report.assembly


def test_a_kernel_in_words():
    (report,) = reports = jax_nano.inspect(jax_nano.matmul, X, W)
    plan = report.plan
    assert plan and report.kernel
    lines = str(report).splitlines()
    assert lines[0] == report.equation
    assert lines[1] == f"  runs as  kernel {report.kernel.name}"
    assert lines[2] == "  problem  M 64, N 16, K 32; f32 x f32 -> f32, summed in f32"
    assert lines[3].startswith(f"  target   {plan.isa}, ")
    assert lines[4].startswith(f"  block    {plan.mr} x {plan.nr} accumulators, ")
    assert lines[5].startswith(f"  cache    MC {plan.mc}, KC {plan.kc}, NC {plan.nc}")
    assert lines[6].startswith("  phases   ")
    assert all(len(line) <= 160 for line in lines)
    assert repr(report) == str(report)
    assert str(reports) == repr(reports) == f"1 product: 1 by kernels, 0 by lax.dot_general\n\n{report}"


def test_a_product_without_a_kernel():
    a = X.astype(np.complex64)
    (report,) = jax_nano.inspect(jnp.matmul, a, W)
    assert report.ran_as == "lax.dot_general"
    assert report.plan is report.mlir is report.llvm_ir is report.assembly is None
    assert str(report) == (
        "c64[64,32] x f32[32,16] -> c64[64,16], contracting [1] with [0]\n"
        "  runs as  lax.dot_general\n"
        f"  because  {report.reason}"
    )
    assert "c64" in report.reason


def test_a_program_without_products():
    reports = jax_nano.inspect(jnp.sin, X)
    assert len(reports) == 0
    assert str(reports) == "0 products: 0 by kernels, 0 by lax.dot_general"


def test_every_product_of_a_program():
    def loss(w, x):
        hidden = jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ w @ w.T), x)
        return (
            jax.checkpoint(lambda h: jnp.einsum("ij,jk->k", h, w).sum())(hidden) + jax.jit(lambda x: x.T @ x)(x).sum()
        )

    equations = [report.equation for report in jax_nano.inspect(loss, W, X)]
    outs = [equation.split(" -> ")[-1].split(", contracting")[0] for equation in equations]
    assert sorted(outs) == ["f32[16]", "f32[32,32]", "scan of 2 steps"]
    assert len(jax_nano.inspect(jax.grad(loss), W, X)) > 3


def test_it_runs_nothing_and_installs_nothing():
    def f(x, w):
        return x @ w

    with kernels(0):
        jax_nano.inspect(f, X, W)
        jax.jit(f)(X, W)


def test_transposed_operands_are_seen():
    (report,) = jax_nano.inspect(lambda x, w: x.T @ w.T, normal(32, 64), normal(16, 32))
    assert "; A transposed; B transposed" in str(report)


def test_arguments_may_be_abstract_nested_and_static():
    def f(params, *, times):
        x = params["x"]
        for _ in range(times):
            x = x @ params["w"]
        return x

    square = jax.ShapeDtypeStruct((8, 8), "float32")
    assert len(jax_nano.inspect(f, {"x": square, "w": square}, times=3)) == 3


def test_sizes_that_are_not_numbers():
    (m,) = jax.export.symbolic_shape("m")
    (report,) = jax_nano.inspect(jax_nano.matmul, jax.ShapeDtypeStruct((m, 4), "float32"), jnp.ones((4, 5)))
    assert report.reason == "the shape (m, 4) is symbolic; kernels are made for known sizes"


def test_reports_can_be_pickled():
    reports = jax_nano.inspect(jax_nano.matmul, X, W)
    again = pickle.loads(pickle.dumps(reports))
    assert str(again) == str(reports)
    assert again[0].plan == reports[0].plan
    assert again[0].assembly == reports[0].assembly


def run(capsys, *arguments):
    command_line.main(arguments)
    return capsys.readouterr().out


def test_info(capsys):
    out = run(capsys, "info")
    for word in ("jax_nano", f"jaxlib      {jaxlib.version.__version__}", "LLVM, MLIR", "processor", "caches      L1 "):
        assert word in out
    assert all(target in out for target in TARGETS)


# Tiles multiply no f32: the vectors beside them do.
@pytest.mark.parametrize(("target", "ran"), [*((isa, isa) for isa in TARGETS if isa != "amx"), ("amx", "avx512")])
def test_the_command_line_prints_a_report(capsys, target, ran):
    out = run(capsys, "inspect", "f32", "512", "512", "512", "--target", target)
    kernel = f"nano_f32_m512n512k512_{ran}"
    assert out.startswith(f"f32[512,512] x f32[512,512] -> f32[512,512]\n  runs as  kernel {kernel}")


@pytest.mark.parametrize(
    ("show", "word"), [("mlir", '"func.func"'), ("llvm", "define "), ("asm", "vfmadd"), ("plan", "block")]
)
def test_the_command_line_shows_each_stage(capsys, show, word):
    assert word in run(capsys, "inspect", "f64", "40", "24", "56", "--show", show)


def test_the_command_line_says_why_there_is_no_kernel(capsys):
    out = run(capsys, "inspect", "c64", "8", "8", "8")
    assert "  runs as  lax.dot_general\n  because  " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "f32", "8", "8", "8", "--target", "vax"], "there is no target vax (there are "),
        (["inspect", "f32*f32", "8", "8", "8"], "f32*f32 does not name element types; write f32, or lhsxrhs>out"),
    ],
)
def test_the_command_lines_errors(arguments, message):
    with pytest.raises(SystemExit, match="python -m jax_nano: ") as stopped:
        command_line.main(arguments)
    assert message in str(stopped.value)


def test_the_command_line_knows_no_negative_sizes(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["inspect", "f32", "--", "-3", "4", "4"])
    assert "argument M: -3 is no size" in capsys.readouterr().err


def test_info_says_that_a_target_is_none(capsys, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "vax")
    out = run(capsys, "info")
    assert "none is used: there is no target vax (there are " in out
    assert "JAX_NANO_TARGET     vax (environment)" in out


def test_it_is_a_module_to_run():
    done = subprocess.run([sys.executable, "-m", "jax_nano", "info"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("jax_nano ")
