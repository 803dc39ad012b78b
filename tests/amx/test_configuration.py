"""LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, and the shapes of loads and stores."""

import itertools
import threading

import numpy as np
import pytest

from .config import tile_config
from .instructions import ldtilecfg, sttilecfg, tileloadd, tileloaddt1, tilerelease, tilestored, tilezero

FULL = tile_config(dict.fromkeys(range(8), (16, 64)))


@pytest.fixture(autouse=True)
def initial_state(amx):
    tilerelease()
    yield
    tilerelease()


def random_rows(shape=(16, 64), seed=4):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_nothing_is_configured_at_first():
    assert sttilecfg() == bytes(64)


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        tile_config({0: (1, 1), 3: (16, 64), 7: (5, 20)}),
        tile_config({}),
        tile_config({2: (9, 12)}, start_row=3),
    ],
    ids=["full", "some", "none", "start_row"],
)
def test_a_configuration_is_stored_as_it_was_loaded(config):
    ldtilecfg(config)
    assert sttilecfg() == config
    tilerelease()
    assert sttilecfg() == bytes(64)


def test_palette_0_is_the_initial_state_whatever_else_it_says():
    ldtilecfg(FULL)
    ldtilecfg(b"\x00" + b"\xff" * 63)
    assert sttilecfg() == bytes(64)


@pytest.mark.parametrize("load", [tileloadd, tileloaddt1])
def test_loads_and_stores_move_what_is_configured_and_no_more(load):
    source = random_rows((16, 80))
    for rows, row_bytes in itertools.product(range(1, 17), range(4, 65, 4)):
        ldtilecfg(tile_config({3: (rows, row_bytes)}))
        load(3, source)
        expected = np.full((16, 96), 0xEE, np.uint8)
        stored = tilestored(3, expected.copy())
        expected[:rows, :row_bytes] = source[:rows, :row_bytes]
        np.testing.assert_array_equal(stored, expected)


def test_tiles_do_not_share_rows():
    ldtilecfg(FULL)
    sources = [random_rows(seed=tile) for tile in range(8)]
    for tile, source in enumerate(sources):
        tileloadd(tile, source)
    tilezero(5)
    sources[5] = np.zeros_like(sources[5])
    for tile, source in enumerate(sources):
        np.testing.assert_array_equal(tilestored(tile, np.empty_like(source)), source)


@pytest.mark.parametrize(
    "clear",
    [
        lambda: tilezero(3),
        lambda: ldtilecfg(FULL),
        lambda: (tilerelease(), ldtilecfg(FULL)),
    ],
    ids=["tilezero", "ldtilecfg", "tilerelease"],
)
def test_a_tile_is_zero_after(clear):
    ldtilecfg(FULL)
    tileloadd(3, random_rows())
    clear()
    assert not tilestored(3, random_rows()).any()


def test_an_interrupted_load_goes_on_at_start_row():
    ldtilecfg(tile_config({3: (16, 64)}, start_row=5))
    rows = random_rows()
    tileloadd(3, rows)
    assert sttilecfg() == tile_config({3: (16, 64)})
    rows[:5] = 0
    np.testing.assert_array_equal(tilestored(3, np.empty_like(rows)), rows)


def test_an_interrupted_store_goes_on_at_start_row():
    ldtilecfg(tile_config({3: (16, 64)}, start_row=5))
    stored = tilestored(3, random_rows())
    assert sttilecfg() == tile_config({3: (16, 64)})
    np.testing.assert_array_equal(stored[:5], random_rows()[:5])
    assert not stored[5:].any()


@pytest.mark.parametrize("view", [lambda rows: rows[::-1], lambda rows: np.broadcast_to(rows[0], rows.shape)])
def test_strides_may_be_negative_or_zero(view):
    ldtilecfg(FULL)
    rows = view(random_rows())
    tileloadd(3, rows)
    np.testing.assert_array_equal(tilestored(3, np.empty((16, 64), np.uint8)), rows)


def test_each_thread_has_tiles_of_its_own():
    turns = threading.Barrier(4, timeout=60)
    failures = []

    def work(seed):
        try:
            config, rows = tile_config({3: (1 + 3 * seed, 64)}), random_rows((1 + 3 * seed, 64), seed)
            assert sttilecfg() == bytes(64)
            turns.wait()
            ldtilecfg(config)
            turns.wait()
            tileloadd(3, rows)
            turns.wait()
            assert sttilecfg() == config
            np.testing.assert_array_equal(tilestored(3, np.empty_like(rows)), rows)
            turns.wait()
            tilerelease()
        except (AssertionError, threading.BrokenBarrierError) as failure:
            failures.append(failure)
            turns.abort()

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
