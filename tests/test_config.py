"""The table of environment variables: what values mean, and that nothing is read past it."""

import ast
import pathlib
import warnings

import pytest
from oracle import run_python

import jax_nano
from jax_nano import config

PACKAGE = pathlib.Path(jax_nano.__file__).parent


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in config.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    config.warn.cache_clear()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_config_reads_the_environment(path):
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert path.name == "config.py" or not names & {"environ", "environb", "getenv", "getenvb"}


def test_it_imports_nothing_of_jax_nano():
    code = "import sys\nimport jax_nano.config\nprint(*(name for name in sys.modules if name.startswith('jax_nano.')))"
    assert run_python(code).split() == ["jax_nano.config"]


def test_the_docs_have_the_table():
    assert config.markdown() in (PACKAGE.parent / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("value, on", [("0", False), ("off", False), ("No", False), ("1", True), ("TRUE", True)])
def test_switches(monkeypatch, value, on):
    monkeypatch.setenv("JAX_NANO", value)
    assert config.enabled() == on


def test_what_is_empty_is_not_set(monkeypatch):
    for name, variable in config.VARIABLES.items():
        monkeypatch.setenv(name, "")
        assert config.text(name) == variable.default
    assert config.directory("JAX_NANO_DUMP") is None


@pytest.mark.parametrize("name, default", [("JAX_NANO", True), ("JAX_NANO_AUTOTUNE", False)])
def test_a_switch_that_is_neither_on_nor_off_is_said_once(monkeypatch, name, default):
    monkeypatch.setenv(name, "maybe")
    message = f"^{name}=maybe is neither 0 nor 1; jax_nano takes it for {int(default)}$"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        assert config.switch(name) == config.switch(name) == default
    assert len(warned) == 1


@pytest.mark.parametrize("value", ["1e3", "-1", "many", "1" * 5000])
def test_a_number_that_is_none_is_said_once(monkeypatch, value):
    monkeypatch.setenv("JAX_NANO_CACHE_MIB", value)
    message = f"^JAX_NANO_CACHE_MIB={value} is not a whole number of at most 15 digits; jax_nano takes it for 512$"
    with pytest.warns(RuntimeWarning, match=message):
        assert config.number("JAX_NANO_CACHE_MIB") == 512
    with warnings.catch_warnings(action="error"):
        assert config.number("JAX_NANO_CACHE_MIB") == 512


def test_where_warnings_are_errors_they_are_logged(monkeypatch, caplog):
    monkeypatch.setenv("JAX_NANO", "no idea")
    with warnings.catch_warnings(action="error"):
        assert config.enabled()
    assert "JAX_NANO=no idea is neither 0 nor 1" in caplog.text


def test_a_directory_may_be_in_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("JAX_NANO_DUMP", "~/kernels")
    assert config.directory("JAX_NANO_DUMP") == pathlib.Path("/home/me/kernels")


def test_a_summary_says_where_values_come_from(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "avx2")
    assert config.summary()["JAX_NANO_TARGET"] == "avx2 (environment)"
    assert config.summary()["JAX_NANO_CACHE_MIB"] == "512 (default)"
    assert config.summary()["JAX_NANO_DUMP"] == "not set (default)"


@pytest.mark.parametrize("kind, default", [("switch", "yes"), ("number", ""), ("color", "red")])
def test_the_table_checks_itself(kind, default):
    with pytest.raises(ValueError, match=f"^JAX_NANO_X: the default '{default}' is no {kind}$"):
        config.Variable("JAX_NANO_X", kind, default, "")
