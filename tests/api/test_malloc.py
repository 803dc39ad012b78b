"""Memory that stays: seen as pages that a large result does not fault in, by processes of each test's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jax_nano
from jax_nano import _native

PROGRAM = """
import ctypes, resource, warnings
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: all pages are small, and each is counted
import jax, jax.numpy as jnp, jax_nano
from jax_nano import _native

MIB = 1 << 20

def faults(megabytes):
    '''The fewest page faults of a result of that size among many runs.'''
    x = jnp.ones(megabytes * MIB // 4, jnp.float32)
    f = jax.jit(lambda x: x + 1)
    return min(counts(lambda: f(x)))

def counts(call):
    '''The page faults of many calls.'''
    found = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call().block_until_ready()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found

def pages(megabytes):
    return megabytes * MIB // resource.getpagesize()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def warnings_of(f, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f(*args)
    return [str(w.message) for w in caught]
"""


def run(code, **environment):
    """Runs code after PROGRAM, in a process whose allocator has its default settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + code], env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
RELEASE = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


@pytest.mark.skipif(not THP.exists() or "[never]" in THP.read_text(), reason="Linux makes no huge pages here")
@pytest.mark.skipif(RELEASE < (6, 11), reason="Linux is slow to say what mapping an address is in")
def test_all_arrays_of_a_program_are_made_of_huge_pages():
    run("""
def of(a, b):
    c = a @ b
    d = jnp.flip(c, 0)  # which XLA makes
    return d @ a

ctypes.CDLL(None).prctl(41, 0, 0, 0, 0)
a, b = jnp.ones((4096, 64)), jnp.ones((64, 4096))
f = jax.jit(jax_nano.accelerate(of))
assert min(counts(lambda: f(a, b))) < 0.1 * 2 * pages(64)
""")


@pytest.mark.skipif(not THP.exists() or "[never]" in THP.read_text(), reason="Linux makes no huge pages here")
def test_a_product_out_of_the_heap_is_made_of_huge_pages():
    # The ends of such a result are there before it is written: malloc's own notes stand beside it.
    run("""
ctypes.CDLL(None).prctl(41, 0, 0, 0, 0)
a, b = jnp.ones((2048, 64)), jnp.ones((64, 3072))
f = jax.jit(jax_nano.matmul)
assert min(counts(lambda: f(a, b))) < 0.2 * pages(24)
""")


def test_without_it_large_results_are_fresh_pages():
    run("assert faults(100) > 0.9 * pages(100)")


@pytest.mark.parametrize("limit", ["512 * MIB", "", "(2 << 30) - 1"])
def test_large_results_are_made_of_pages_that_stayed(limit):
    run(f"jax_nano.retain_memory({limit}); assert faults(100) < 0.01 * pages(100)")


def test_results_above_the_limit_are_fresh_pages():
    run("jax_nano.retain_memory(90 * MIB); assert faults(100) > 0.9 * pages(100)")


def test_all_threads_share_one_heap():
    run("jax_nano.retain_memory(); faults(1); assert _native.arenas() == 1")


def test_it_can_be_undone():
    # Small arrays between large ones keep free chunks in the heap: what is asked for afterwards fits none of them.
    run("""
import time
jax_nano.retain_memory(512 * MIB)
assert faults(50) < 0.01 * pages(50)
time.sleep(1)  # the last arrays are given back by another thread
held = resident()
jax_nano.release_memory()
assert resident() < held - 45 * MIB
assert faults(300) > 0.9 * pages(300)
jax_nano.retain_memory(512 * MIB)
assert faults(300) < 0.01 * pages(300)
""")


def test_undone_before_threads_start_they_have_heaps_of_their_own():
    run("jax_nano.retain_memory(); jax_nano.release_memory(); faults(1); assert _native.arenas() > 1")


def test_undoing_nothing_is_harmless():
    run("jax_nano.release_memory(); assert faults(100) > 0.9 * pages(100); assert faults(30) < 0.01 * pages(30)")


def test_a_late_call_says_what_it_cannot_do():
    run("""
import re
faults(1)
(message,) = warnings_of(jax_nano.retain_memory, 512 * MIB)
assert re.fullmatch(
    r"retain_memory came late: threads have \\d+ heaps already, and results above 64 MiB stay in one only; "
    r"call it before the first JAX computation, or start Python with MALLOC_ARENA_MAX=1", message), message
assert faults(50) < 0.01 * pages(50)
assert warnings_of(jax_nano.retain_memory, 50 * MIB) == []
""")


def test_a_late_call_has_its_effect_where_there_is_one_heap():
    run(
        "faults(1); assert warnings_of(jax_nano.retain_memory) == []; assert faults(100) < 0.01 * pages(100)",
        MALLOC_ARENA_MAX="1",
    )


def test_with_another_allocator_it_does_nothing_and_says_so():
    # glibc's own malloc for debugging, preloaded as others are.
    out = run(
        """
before = _native.arenas()
(message,) = warnings_of(jax_nano.retain_memory)
print(message)
assert warnings_of(jax_nano.release_memory) == []
""",
        LD_PRELOAD="libc_malloc_debug.so.0",
    )
    message = r"retain_memory does nothing: malloc is that of \S*/libc_malloc_debug.so.0, not glibc's; it has settings"
    assert re.match(message, out)


def test_this_process_has_glibcs_malloc():
    assert _native.foreign_allocator() == ""


@pytest.mark.parametrize("limit", [0, -1, 2 << 30])
def test_limits_that_glibc_does_not_take(limit):
    message = (
        f"limit_bytes = {limit}: glibc takes from 1 byte to 2 GiB - 1; give None to keep all, "
        "or call release_memory() to keep nothing"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jax_nano.retain_memory(limit)
