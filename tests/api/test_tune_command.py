"""`python -m jax_nano tune`: a program runs as by itself, and its products are measured on the way."""

import re
import subprocess
import sys

import pytest
from products import f32_product

from jax_nano.__main__ import main
from jax_nano.machine import host
from jax_nano.runtime import kernels, tuning
from jax_nano.runtime.kernels import Place, kernel_for, recall_winner

PROGRAM = """
import sys
import jax, jax.numpy as jnp, jax_nano
x, w = jnp.ones((9, 33)), jnp.ones((33, 20))
print(jax.jit(jax_nano.matmul)(x, w).sum())
print(jax.jit(lambda x, w: jax_nano.matmul(x, w).max())(x, w))
jax.jit(jax_nano.accelerate(lambda x, w: jax.nn.relu(x @ w)))(x, w)
print(jax.jit(jnp.matmul)(w.T, x.T).sum())
"""
IN_PROGRAM = f32_product(9, 20, 33)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Few plans and short turns, an empty cache, and a process as it was before."""
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, value in (("CANDIDATES", 2), ("TURNS", 1), ("TURN_SECONDS", 1e-4)):
        monkeypatch.setattr(tuning, name, value)
    kernels._kernels.clear()
    yield
    kernels._kernels.clear()


@pytest.fixture
def program(tmp_path):
    """Writes a program to a file, and gives its path."""

    def write(text, name="program.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def has_winner(dot):
    machine = host.machine()
    return bool(recall_winner(dot, Place(machine, machine.isas[0])))


def test_every_product_of_jax_nanos_is_measured_once(program, capsys):
    main(["tune", program(PROGRAM)])
    out, err = capsys.readouterr()
    assert out.split() == ["5940.0", "33.0", "5940.0"]
    progress, table = err.split("\n\n")
    assert [line.split(",")[0] for line in progress.splitlines()] == ["product 1", "product 2"]
    header, *rows, total = table.splitlines()
    assert header.split() == ["product", "cost", "model", "best", "found", "gain"]
    assert len(rows) == 2 and all(row.startswith("M 9, N 20, K 33; f32 x f32 -> f32, summed in f32") for row in rows)
    assert rows[1].startswith("M 9, N 20, K 33; f32 x f32 -> f32, summed in f32; with an epilogue ")
    assert re.fullmatch(r"2 products, each counted once +[\d.,]+ us +[\d.,]+ us +\d+\.\d\d", total)
    assert has_winner(IN_PROGRAM) and "measured" in kernel_for(IN_PROGRAM).plan.why


def test_products_with_a_winner_can_be_left_alone(program, capsys):
    path = program(PROGRAM)
    main(["tune", path])
    kernels._kernels.clear()
    capsys.readouterr()
    main(["tune", "--new", path])
    assert capsys.readouterr().err == "2 products had winners already\n"


def test_plain_jax_is_measured_where_jax_nano_is_installed_for_it(program, capsys):
    path = program(
        "import jax, jax.numpy as jnp\nprint(jax.jit(jnp.matmul)(jnp.ones((9, 33)), jnp.ones((33, 20)))[0, 0])"
    )
    main(["tune", path])
    nothing = f"{path} ran no product through jax_nano: nothing was tuned; --install has jax_nano compute the others'"
    assert nothing in capsys.readouterr().err
    main(["tune", "--install", path])
    out, err = capsys.readouterr()
    assert out == "33.0\n" and "1 product, each counted once" in err
    assert has_winner(IN_PROGRAM)


def test_arguments_are_the_programs(program, capsys):
    path = program("import sys\nprint(__name__, sys.argv[1:], sys.path[0])", "folder/program.py")
    main(["tune", path, "--new", "-m", "x"])
    assert capsys.readouterr().out == f"__main__ ['--new', '-m', 'x'] {path.removesuffix('/program.py')}\n"
    assert sys.argv[0] == path


def test_a_program_knows_where_it_is_when_it_goes_elsewhere(program, capsys):
    path = program("import os\nos.chdir('/')\nprint(__file__)")
    main(["tune", "program.py"])
    assert capsys.readouterr().out == f"{path}\n"


def test_modules_run_as_by_python(program, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    path = program("import sys\nprint(__name__, sys.argv)", "of_tuning/__main__.py")
    main(["tune", "-m", "of_tuning", "--new"])
    assert capsys.readouterr().out == f"__main__ {[path, '--new']}\n"


@pytest.mark.parametrize("end, code", [("sys.exit(3)", 3), ("sys.exit('good bye')", "good bye"), ("exit()", None)])
def test_an_exit_is_passed_on_after_the_table(program, end, code, capsys):
    with pytest.raises(SystemExit) as end_of_it:
        main(["tune", program(PROGRAM + end)])
    assert end_of_it.value.code == code
    assert "2 products, each counted once" in capsys.readouterr().err


@pytest.mark.parametrize("error, code", [("ValueError('so it is')", 1), ("KeyboardInterrupt()", 130)])
def test_an_exception_is_shown_from_the_program_on(program, error, code, capsys):
    path = program(f"{PROGRAM}\nraise {error}")
    with pytest.raises(SystemExit) as end_of_it:
        main(["tune", path])
    assert end_of_it.value.code == code
    shown = re.search(r"Traceback \(most recent call last\):\n(.*)", capsys.readouterr().err)
    assert shown and shown[1].startswith(f'  File "{path}", line ')


def test_a_program_that_does_not_parse_is_shown(program, capsys):
    with pytest.raises(SystemExit) as end_of_it:
        main(["tune", program("1 +")])
    assert end_of_it.value.code == 1
    assert "SyntaxError: invalid syntax" in capsys.readouterr().err


def test_what_cannot_be_run_is_said(tmp_path, monkeypatch):
    for arguments, words in (
        (["nothing.py"], "there is no file nothing.py; name a Python program, or a module with -m"),
        ([str(tmp_path)], f"{tmp_path} is a folder without a __main__.py; name a Python program in it"),
        (["-m", "no.such"], "there is no module no.such; name one as for `python -m`, or a file without -m"),
    ):
        with pytest.raises(SystemExit, match=f"^python -m jax_nano: {re.escape(words)}$"):
            main(["tune", *arguments])
    monkeypatch.setenv("JAX_NANO", "0")
    with pytest.raises(SystemExit, match="JAX_NANO=0 turns jax_nano off: nothing can be tuned; unset it"):
        main(["tune", "nothing.py"])


@pytest.mark.emulator
def test_a_target_of_another_machine_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    with pytest.raises(SystemExit, match="JAX_NANO_TARGET=amx does not run here; choose one of `info`'s"):
        main(["tune", "nothing.py"])


def test_winners_that_are_not_kept_are_said_to_be_lost(program, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NANO_CACHE", "0")
    main(["tune", program(PROGRAM)])
    lost = "the winners are lost with this process, as kernels on disk are off: JAX_NANO_CACHE=0\n"
    assert capsys.readouterr().err.endswith(lost)


def test_a_program_may_set_what_jax_reads_when_it_is_imported(program):
    path = program("import os, sys\nassert 'jax' not in sys.modules\nos.environ['JAX_ENABLE_X64'] = '1'\n"
                   "import jax\nprint(jax.numpy.ones(1).dtype)")  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "jax_nano", "tune", path], capture_output=True, text=True, check=True)
    assert done.stdout == "float64\n"
