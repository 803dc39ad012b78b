"""The kernel cache: what its keys stand for, what it loads and refuses, and that no failure of it reaches a product."""

import concurrent.futures
import copy
import dataclasses
import os
import pathlib
import pwd
import re
import shutil
import stat
import subprocess
import sys
import time
import types
import warnings

import pytest

import jax_nano
from jax_nano import _native
from jax_nano.__main__ import main
from jax_nano.ir.dot import Dot, Operand
from jax_nano.runtime import cache, cache_command, keys, toolchain
from jax_nano.runtime.kernel import Processor
from jax_nano.runtime.kernels import kernel_for
from jax_nano.schedule.plan import Plan

CODE = b"\x7fELF" + bytes(range(256)) * 4
PARTS = ("a plan", 1)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of the test's own, and a process that has not warned or stored yet."""
    for name in ("JAX_NANO_CACHE", "JAX_NANO_CACHE_MIB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "allowance", cache.Allowance())
    cache.warn.cache_clear()
    return tmp_path


def unreachable():
    raise AssertionError("compiled what the cache holds")


def fetch(compiled=lambda: CODE, parts=PARTS):
    return cache.fetch("nano_test", parts, compiled)


def path(parts=PARTS):
    return cache.directory() / f"nano_test-{cache.key(parts)}.o"


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Keys


def plan():
    dot = Dot.of(Operand.row_major((5, 7), "f32"), Operand.row_major((7, 9), "f32"), (((1,), (0,)), ((), ())), "f32")
    return kernel_for(dot).plan


def altered(value, name):
    """A copy that differs in one field, unchecked."""
    other = copy.copy(value)
    object.__setattr__(other, name, "something else")
    return other


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Plan) if f.compare])
def test_every_field_of_a_plan_enters_its_key(name):
    assert cache.key((plan(),)) != cache.key((altered(plan(), name),))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Processor)])
def test_all_that_llvm_compiles_for_enters_the_key(name):
    processor = Processor("x86-64-v3", "+fma", "znver5")
    assert cache.key((processor,)) != cache.key((altered(processor, name),))


def test_why_a_plan_was_chosen_does_not_enter_its_key():
    assert cache.key((plan(),)) == cache.key((altered(plan(), "why"),))


@pytest.mark.parametrize(
    "one, other", [(("ab",), ("a", "b")), ((1, 2), (12,)), (((1,), 2), ((1, 2),)), ("1", 1), (None, "None"), (1, 2.5)]
)
def test_descriptions_tell_values_apart(one, other):
    assert keys.describe(one) != keys.describe(other)


@pytest.mark.parametrize("value", [object(), {"a": 1}, [1], lambda: 1, b""])
def test_what_has_no_lasting_description_is_compiled_each_time(value):
    with pytest.warns(RuntimeWarning, match=f"a value of type {type(value).__name__}, which has no lasting text; make"):
        assert fetch(parts=(value,)) == CODE
    assert fetch(lambda: b"again", parts=(value,)) == b"again"


@pytest.fixture
def package(home):
    """A copy of jax_nano's sources, which the toolchain's digest is of."""
    return pathlib.Path(shutil.copytree(pathlib.Path(jax_nano.__file__).parent, home / "jax_nano"))


LATER = time.time_ns() + 10**15  # than any file was changed


def test_the_toolchain_changes_with_the_sources(package):
    before = toolchain.sources_digest(package, LATER)
    assert before == toolchain.sources_digest(package, LATER)
    with (package / "codegen" / "nanokernel.py").open("a") as file:
        file.write("\n")
    assert toolchain.sources_digest(package, LATER) != before


def test_sources_saved_after_they_were_loaded_are_not_those_that_run(package):
    loaded = time.time_ns()
    time.sleep(0.02)  # files are dated by a clock of coarse ticks
    toolchain.sources_digest(package, loaded)
    (package / "codegen" / "nanokernel.py").touch()
    with pytest.raises(toolchain.NoDigest, match=r"^jax_nano's sources were changed while it runs$"):
        toolchain.sources_digest(package, loaded)


def test_the_toolchain_changes_with_the_extension(home, package, monkeypatch):
    before = toolchain.sources_digest(package, LATER)
    altered = home / "_native.so"
    altered.write_bytes(pathlib.Path(_native.__file__).read_bytes() + b"\0")
    monkeypatch.setattr(_native, "__file__", str(altered))
    assert toolchain.sources_digest(package, LATER) != before


def test_the_toolchain_changes_with_the_compiler(home, monkeypatch):
    library = home / "libLLVM.so"
    library.write_bytes(b"")
    monkeypatch.setattr(_native, "libraries", (str(library),))
    before = toolchain.toolchain_digest()
    os.utime(library, (1, 1))
    after = toolchain.toolchain_digest()
    monkeypatch.setattr(_native, "llvm_version", "23")
    assert len({before, after, toolchain.toolchain_digest()}) == 3


def test_a_wheels_digest_is_that_of_its_build_and_no_source_is_read(monkeypatch):
    def build(sources):
        monkeypatch.setitem(sys.modules, "jax_nano._build_info", types.SimpleNamespace(SOURCES=sources))
        monkeypatch.setattr(toolchain, "sources_digest", lambda *_: pytest.fail("sources were read"))
        return toolchain.toolchain_digest()

    of_sources = toolchain.toolchain_digest()
    assert len({of_sources, build("one"), build("another")}) == 3


def test_importing_digests_no_sources():
    code = "import jax, jax_nano; from jax_nano.runtime import kernels, toolchain as t"
    assert run(f"{code}; jax_nano.matmul; print(t.toolchain.cache_info().currsize)") == "0\n"


def test_another_toolchain_finds_nothing(monkeypatch):
    fetch()
    monkeypatch.setattr(cache, "toolchain", lambda: toolchain.Toolchain(digest="another"))
    assert fetch(lambda: b"recompiled") == b"recompiled"


def test_mlir_and_llvm_are_files_of_their_own():
    assert all(pathlib.Path(library).is_file() for library in _native.libraries)


# Entries

PRODUCT = """
import sys
from jax_nano import _native
if sys.argv[-1:] == ["load"]:
    def compile(*_): raise SystemExit("compiled what the cache holds")
    _native.compile = compile
import jax, numpy as np, jax_nano
a, b = (np.random.default_rng(0).standard_normal((33, 33)).astype(np.float32) for _ in range(2))
product = jax.jit(jax_nano.matmul)(a, b)
assert jax_nano.executed_kernels() == 1
np.testing.assert_allclose(product, a.astype(np.float64) @ b, rtol=1e-4, atol=1e-4)
"""


def test_a_second_process_loads_what_the_first_compiled():
    run(PRODUCT, PYTHONHASHSEED="1")
    (entry,) = cache.directory().iterdir()
    assert cache.ENTRY.fullmatch(entry.name)
    run(f"import sys; sys.argv.append('load'){PRODUCT}", PYTHONHASHSEED="2")


def test_an_entry_is_an_object_file_with_a_digest_behind_it():
    fetch()
    content = path().read_bytes()
    assert content[: -cache.DIGEST_BYTES] == CODE


def test_what_was_stored_is_loaded():
    assert fetch() == CODE
    assert fetch(unreachable) == CODE


def test_another_plan_has_another_entry():
    fetch()
    assert fetch(lambda: b"other", parts=("another plan", 1)) == b"other"
    assert fetch(unreachable) == CODE


def test_what_does_not_compile_is_raised_and_not_stored():
    with pytest.raises(AssertionError, match="compiled what the cache holds"):
        fetch(unreachable)
    assert not [*cache.directory().iterdir()]


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE = {
    "truncated": lambda content: content[:-1],
    "only the digest": lambda content: content[-cache.DIGEST_BYTES :],
    "short": lambda content: content[:5],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "a bit of the code": lambda content: flipped(content, 10),
    "a bit of the digest": lambda content: flipped(content, -1),
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"not an object file",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_compiled_anew_and_replaced(damage):
    fetch()
    path().write_bytes(DAMAGE[damage](path().read_bytes()))
    assert fetch(lambda: b"recompiled") == b"recompiled"
    assert fetch(unreachable) == b"recompiled"


def test_an_entry_under_the_name_of_another_is_replaced():
    fetch(parts=("another plan",))
    path(("another plan",)).rename(path())
    assert fetch(lambda: b"recompiled") == b"recompiled"
    assert fetch(unreachable) == b"recompiled"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_not_a_file_is_replaced(kind, home):
    fetch()
    path().rename(home / "elsewhere")
    path().symlink_to(home / "elsewhere") if kind == "link" else os.mkfifo(path(), 0o600)
    assert fetch(lambda: b"recompiled") == b"recompiled"
    assert stat.S_ISREG(path().lstat().st_mode)
    assert fetch(unreachable) == b"recompiled"


def test_a_directory_in_an_entrys_place_costs_only_compilations():
    path().mkdir(parents=True, mode=0o700)
    path().parent.chmod(0o700)
    assert fetch() == fetch() == CODE
    assert [p.name for p in cache.directory().iterdir()] == [path().name]


# Other users


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(place):
    return stat.S_IMODE(place.stat().st_mode)


def test_the_cache_is_private(open_umask):
    fetch()
    assert mode(path()) == 0o600
    assert mode(cache.directory()) == mode(cache.directory().parent) == 0o700


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_to_is_not_used(bits):
    fetch()
    cache.directory().chmod(bits)
    message = (
        f"jax_nano compiles a kernel that its cache may hold: {cache.directory()} is writable by other users; "
        "remove it, or set JAX_NANO_CACHE_DIR to a directory of your own"
    )
    with pytest.warns(RuntimeWarning, match=re.escape(message)):
        assert fetch(lambda: b"recompiled") == b"recompiled"
    with warnings.catch_warnings(action="error"):  # it was said
        assert fetch(lambda: b"again", parts=("another plan",)) == b"again"
    cache.directory().chmod(0o700)
    assert fetch(unreachable) == CODE  # nothing was written meanwhile


def test_a_directory_of_another_user_is_not_used(monkeypatch):
    fetch()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(
        RuntimeWarning, match=rf"kernels belongs to another user \({owner}\); remove it, or set JAX_NANO"
    ):
        assert fetch(lambda: b"recompiled") == b"recompiled"


@pytest.mark.parametrize("bits", [0o620, 0o602, 0o666])
def test_an_entry_that_others_can_write_to_is_compiled_anew_and_replaced(bits):
    fetch()
    path().chmod(bits)
    with pytest.warns(RuntimeWarning, match=f"{path().name} is writable by other users; it will be replaced"):
        assert fetch(lambda: b"recompiled") == b"recompiled"
    assert mode(path()) == 0o600
    assert fetch(unreachable) == b"recompiled"


def test_files_that_others_can_only_read_are_used():
    fetch()
    cache.directory().chmod(0o755)
    path().chmod(0o644)
    assert fetch(unreachable) == CODE


# Where it is, and whether


@pytest.mark.parametrize("setting", ["0", "off", "No", "FALSE"])
def test_it_can_be_turned_off(setting, monkeypatch):
    fetch()
    monkeypatch.setenv("JAX_NANO_CACHE", setting)
    assert fetch(lambda: b"recompiled") == b"recompiled"
    monkeypatch.delenv("JAX_NANO_CACHE")
    assert fetch(unreachable) == CODE


def test_the_environment_names_the_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/me")
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", "~/kept")
    assert cache.directory() == pathlib.Path("/home/me/kept/kernels")
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", "")
    assert cache.directory() == pathlib.Path("/var/me/jax_nano/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative paths do not count")
    assert cache.directory() == pathlib.Path("/home/me/.cache/jax_nano/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == pathlib.Path("/home/me/.cache/jax_nano/kernels")


def test_without_a_home_kernels_are_compiled(monkeypatch):
    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_NANO_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert fetch() == CODE
    assert cache_command.summary() == "not in use: Could not determine home directory. Set JAX_NANO_CACHE_DIR"


@pytest.mark.parametrize("place", ["a file", "/proc/self"])
def test_where_nothing_can_be_written_kernels_are_compiled(place, home, monkeypatch):
    (home / "a file").write_bytes(b"")
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(home / place))
    assert fetch() == fetch() == CODE


def test_on_a_full_disk_kernels_are_compiled(monkeypatch):
    fetch(parts=("another plan",))
    real = cache.within

    def within(folder, more_flags=0):
        return lambda name, flags: (
            os.open("/dev/full", os.O_WRONLY) if flags & os.O_CREAT else real(folder, more_flags)(name, flags)
        )

    monkeypatch.setattr(cache, "within", within)
    assert fetch() == CODE
    assert list(cache.directory().iterdir()) == [path(("another plan",))]


def test_what_could_not_be_finished_is_removed(monkeypatch):
    def fails(*_, **__):
        raise OSError("as a disk does")

    monkeypatch.setattr(os, "replace", fails)
    assert fetch() == CODE
    assert list(cache.directory().iterdir()) == []


@pytest.mark.parametrize("function", ["load", "store", "key"])
def test_a_fault_of_the_cache_costs_a_compilation_only(monkeypatch, function):
    def fails(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(cache, function, fails)
    with pytest.warns(RuntimeWarning, match="^jax_nano cannot use its cache: RuntimeError: a fault$"):
        assert fetch() == CODE


def test_without_its_sources_it_is_off(monkeypatch):
    monkeypatch.setattr(_native, "__file__", "/nowhere")
    monkeypatch.setattr(cache, "toolchain", toolchain.toolchain.__wrapped__)
    assert fetch() == CODE
    assert cache_command.summary() == "off: jax_nano's own files cannot be read"


# Size

THIRD = bytes(340_000)  # of a cache of 1 MiB


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE_MIB", "1")


def kept(count):
    return [i for i in range(count) if path((i,)).exists()]


def test_those_used_longest_ago_go_first(small):
    for i, age in enumerate([20, 30, 10]):
        assert fetch(lambda: THIRD, parts=(i,)) == THIRD
        os.utime(path((i,)), (time.time() - age, time.time() - age))
    assert kept(3) == [0, 1, 2]
    assert fetch(unreachable, parts=(1,)) == THIRD  # used just now
    fetch(lambda: THIRD, parts=(3,))
    assert kept(4) == [1, 3]  # under three quarters of the limit


def test_what_is_larger_than_the_cache_is_not_kept(small):
    large = bytes(2 << 20)
    assert fetch(lambda: large) == large
    assert not path().exists()


def test_of_nothing_nothing_is_kept(monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE_MIB", "0")
    assert fetch() == CODE
    assert not path().exists()


def test_a_limit_that_is_no_number_is_said_once(monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE_MIB", "1e3")
    message = re.escape("JAX_NANO_CACHE_MIB=1e3 is not a whole number of at most 15 digits; jax_nano takes it for 512")
    with pytest.warns(RuntimeWarning, match=message) as warned:
        assert cache.limit_bytes() == cache.limit_bytes() == 512 << 20
    assert len(warned) == 1


def test_only_its_own_files_are_removed(monkeypatch):
    fetch()
    hour_ago = time.time() - 2 * cache.UNFINISHED_SECONDS
    dead, alive = (path().with_name(f".{path().name}.{token}") for token in ("0123456789abcdef", "fedcba9876543210"))
    foreign = [path().with_name(name) for name in ("notes.txt", ".hidden", "nano_test.o", "nano_test-0.o")]
    for file in (dead, alive, *foreign):
        file.write_bytes(b"")
    for file in (dead, *foreign):
        os.utime(file, (hour_ago, hour_ago))
    monkeypatch.setenv("JAX_NANO_CACHE_MIB", "0")
    monkeypatch.setattr(cache, "allowance", cache.Allowance())
    fetch(parts=("another plan",))
    assert sorted(cache.directory().iterdir()) == sorted((alive, *foreign))


def test_the_cache_is_measured_again_after_a_quarter_of_what_is_free(small, monkeypatch):
    sweeps = []
    sweep = cache.sweep
    monkeypatch.setattr(cache, "sweep", lambda *a: sweeps.append(1) or sweep(*a))
    for i in range(10):
        fetch(lambda: bytes(20_000), parts=(i,))
    assert len(sweeps) == 1
    for i in range(10, 30):
        fetch(lambda: bytes(20_000), parts=(i,))
    assert len(sweeps) == 3


# Many at once

CROWD = """
import os, random
from jax_nano.runtime import cache

def child(seed):
    choose = random.Random(seed)
    for _ in range(60):
        i = choose.randrange(6)
        code = bytes([i]) * 300_000
        assert cache.fetch("nano_test", (i,), lambda: code) == code
        if choose.random() < 0.1:  # as if a disk had failed
            try:
                with open(cache.directory() / f"nano_test-{cache.key((i,))}.o", "r+b") as file:
                    file.truncate(choose.randrange(300_000))
            except FileNotFoundError:
                pass

children = []
for seed in range(8):
    if pid := os.fork():
        children.append(pid)
    else:
        status = 1
        try:
            child(seed)
            status = 0
        finally:
            os._exit(status)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
"""


def test_processes_that_write_damage_and_evict_the_same_entries_get_their_code(small):
    run(CROWD)
    assert all(cache.ENTRY.fullmatch(entry.name) for entry in cache.directory().iterdir())


def test_threads_that_write_and_evict_the_same_entries_get_their_code(small):
    def work(number):
        code = bytes([number % 6]) * 300_000
        return all(fetch(lambda: code, parts=(number % 6,)) == code for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(24)))


# The command line


def printed(capsys, *arguments):
    main(arguments)
    return capsys.readouterr().out.strip()


def test_the_command_line_shows_and_clears_it(capsys):
    assert printed(capsys, "cache") == f"0 kernels, 0 KiB of 512 MiB at most, in {cache.directory()}"
    assert printed(capsys, "cache", "--clear") == "removed 0 kernels, 0 KiB"
    assert printed(capsys, "cache", "--list") == ""
    fetch()
    fetch(lambda: bytes(2500), parts=("another plan",))
    os.utime(path(), (1, 1))
    assert printed(capsys, "cache") == f"2 kernels, 3 KiB of 512 MiB at most, in {cache.directory()}"
    lines = printed(capsys, "cache", "--list").splitlines()
    assert [line.split()[-1] for line in lines] == [path(("another plan",)).name, path().name]
    assert f"on disk     2 kernels, 3 KiB of 512 MiB at most, in {cache.directory()}" in printed(capsys, "info")
    assert printed(capsys, "cache", "--clear") == "removed 2 kernels, 3 KiB"
    assert list(cache.directory().iterdir()) == []


def test_the_command_line_counts_winners_of_tuning_apart(capsys):
    fetch()
    cache.put(cache.WINNER, ("a product",), b"a plan")
    assert printed(capsys, "cache").startswith("1 kernel, 1 winner of tuning, 1 KiB of 512 MiB at most, in ")
    cache.put(cache.WINNER, ("another product",), b"a plan")
    assert printed(capsys, "cache", "--clear") == "removed 1 kernel, 2 winners of tuning, 1 KiB"
    assert list(cache.directory().iterdir()) == []


def test_the_command_line_says_why_it_is_not_in_use(capsys, monkeypatch):
    fetch()
    cache.directory().chmod(0o777)
    fault = f"{cache.directory()} is writable by other users; remove it, or set JAX_NANO_CACHE_DIR to a directory of"
    assert printed(capsys, "cache").startswith(f"not in use: {fault}")
    with pytest.raises(SystemExit, match=re.escape(fault)):
        main(["cache", "--clear"])
    monkeypatch.setenv("JAX_NANO_CACHE", "0")
    assert printed(capsys, "cache") == "off: JAX_NANO_CACHE=0"
