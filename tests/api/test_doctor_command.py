"""`python -m jax_nano doctor`: a program runs as by itself, and what became of its time is told."""

import re
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jax_nano
from jax_nano.__main__ import main
from jax_nano.api import doctor_command
from jax_nano.api.advice import advice
from jax_nano.machine import host
from jax_nano.runtime.program_profile import ProgramProfile, profiled
from jax_nano.runtime.report import KINDS, Report

PROGRAM = """
import sys
import jax, jax.numpy as jnp, jax_nano
x, w = jnp.ones((64, 300)), jnp.ones((300, 200))
product, attention = jax.jit(jnp.matmul), jax.jit(jax_nano.dot_product_attention)
image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 16))
q = jnp.ones((1, 40, 2, 16))
convolve = jax.jit(lambda x, w: jax_nano.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
for _ in range(3):
    y = product(x, w)
attention(q, q, q), convolve(image, kernel)
whole = jnp.ones((9, 9), jnp.int64 if jax.config.jax_enable_x64 else jnp.complex64)
print(y.sum(), product(whole, whole).shape, jnp.sort(y)[0, 0], *sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def process(tmp_path, monkeypatch):
    """A process as it was before, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def program(tmp_path):
    """Writes a program to a file, and gives its path."""

    def write(text):
        (tmp_path / "program.py").write_text(text)
        return str(tmp_path / "program.py")

    return write


def told(capsys):
    """What the program printed, and what was told of it, by its first words."""
    out, err = capsys.readouterr()
    sections = err.strip().split("\n\n")
    return out, {section.split()[0]: section for section in sections}


def test_kernels_of_every_kind_are_told_apart_with_how_often_they_ran(program, capsys):
    main(["doctor", program(PROGRAM), "one", "--two"])
    out, sections = told(capsys)
    assert out.endswith("one --two\n") and out.startswith("3.84e+06")
    rows = dict(re.findall(r"^(kernels: \w+) +(\d+) ", sections["where"], re.M))
    assert rows == {"kernels: products": "3", "kernels: attention": "1", "kernels: convolutions": "1"}
    assert "XLA: sort" in sections["where"]
    first = re.search(r"^M 64, N 200, K 300; f32 +3 +[\d.]+ ms +\d+%", sections["kernel"], re.M)
    assert first
    assert re.search(r"1 product without a kernel:\n- .*: no kernel multiplies", sections["1"])


def test_shares_add_up(program, capsys):
    main(["doctor", program(PROGRAM)])
    _, sections = told(capsys)
    shares = [int(share) for share in re.findall(r"(\d+)%$", sections["where"], re.M)]
    assert 95 <= sum(shares) <= 105


def test_as_is_leaves_what_the_program_does_not_give_jax_nano(program, capsys):
    main(["doctor", "--as-is", program("import jax, jax.numpy as jnp\nx = jnp.ones((99, 99))\nprint((x @ x).sum())")])
    _, sections = told(capsys)
    assert "kernels:" not in sections["where"]
    assert sections["what"].endswith("leave out --as-is, or wrap the model in jax_nano.accelerate")


def test_a_program_without_products_is_told_so(program, capsys):
    main(["doctor", program("import jax.numpy as jnp\nprint(jnp.sort(jnp.ones(9)))")])
    _, sections = told(capsys)
    assert sections["what"].endswith(
        "the program has no products, convolutions, attention or loops of them; jax_nano computes nothing else"
    )


def test_a_program_that_fails_is_told_of_all_the_same(program, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", program(f"{PROGRAM}\nraise KeyError('gone')")])
    assert end.value.code == 1
    _, err = capsys.readouterr()
    assert "KeyError: 'gone'" in err and "kernels: products" in err


def test_a_program_with_a_trace_of_its_own_is_left_to_it(program, tmp_path, capsys):
    text = (
        f"import jax, jax.numpy as jnp\nwith jax.profiler.trace({str(tmp_path)!r}):\n  print(jnp.ones((99, 99)).sum())"
    )
    with pytest.raises(SystemExit):
        main(["doctor", program(text)])
    assert "Only one profile may be run at a time" in capsys.readouterr().err


def test_the_roofline_is_drawn(program, tmp_path, capsys):
    main(["doctor", "--picture", str(tmp_path / "roof.png"), program(PROGRAM)])
    assert (tmp_path / "roof.png").stat().st_size > 10_000
    assert f"roofline in {tmp_path / 'roof.png'}" in capsys.readouterr().err


def test_without_matplotlib_a_picture_is_refused_before_the_program_runs(program, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax_nano.api.roofline_plot", None)
    with pytest.raises(SystemExit, match="which is not installed: pip install matplotlib"):
        main(["doctor", "--picture", "roof.png", program("print('ran')")])
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["missing.py"], "there is no file missing.py"),
    (["-m", "jax_nano_missing"], "there is no module jax_nano_missing"),
])  # fmt: skip
def test_what_cannot_run_is_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["doctor", *arguments])


def test_it_needs_jax_nano_switched_on(monkeypatch, program):
    monkeypatch.setenv("JAX_NANO", "0")
    with pytest.raises(SystemExit, match="turns jax_nano off: there is nothing to see"):
        main(["doctor", program(PROGRAM)])


def test_a_small_product_of_a_large_weight_waits_for_memory():
    with profiled(host.machine()) as profile:
        product = jax.jit(jax_nano.matmul)
        x, w = jnp.ones((1, 2048)), jnp.ones((2048, 4096))
        for _ in range(3):
            product(x, w).block_until_ready()
    (use,) = profile.kernels
    assert (use.kind, use.runs) == ("products", 3)
    assert use.roof.waits_for_memory and use.roof.flops == 2 * 2048 * 4096
    assert use.share_of_roof > 0
    assert any("waits for B to arrive from memory" in line for line in advice(profile, host.machine(), installed=True))


def test_times_are_in_milliseconds():
    assert doctor_command.milliseconds(0.25) == "250.0 ms"
    assert doctor_command.milliseconds(0.0012345) == "1.234 ms"


def convolve(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def recurrent(x, w):
    return lax.scan(lambda h, rows: (jnp.tanh(rows + h @ w), None), jnp.zeros(x.shape[1:]), x)[0]


PROGRAMS = {
    "products": (jnp.matmul, (9, 8), (8, 7)),
    "convolutions": (lambda x, w: jax.nn.relu(convolve(x, w)), (1, 8, 8, 4), (3, 3, 4, 16)),
    "attention": (lambda q, k: jax.nn.dot_product_attention(q, k, k), (1, 40, 2, 16), (1, 40, 2, 16)),
    "grouped products": (lambda x, w: lax.ragged_dot(x, w, jnp.array([3, 5])), (8, 16), (2, 16, 16)),
    "loops": (recurrent, (100, 8, 64), (64, 64)),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_kinds_in_accelerated_programs(kind):
    f, *shapes = PROGRAMS[kind]
    reports = jax_nano.inspect(jax_nano.accelerate(f), *map(jnp.ones, shapes))
    assert {report.kind for report in reports} == {kind}
    assert str(reports).startswith(f"{len(reports)} {KINDS[kind]}")


def test_what_has_no_kernel_is_counted_by_kind():
    left = [Report(equation="a", reason="r"), Report(equation="b", reason="r", otherwise="lax.conv_general_dilated")]
    text = doctor_command.left_list(ProgramProfile(left=left))
    assert text.splitlines()[0] == "1 product and 1 convolution without a kernel:"
