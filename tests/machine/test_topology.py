"""Threads and caches that a process sees, on machines as Linux describes them."""

import argparse
import math
import os
from dataclasses import replace

import pytest
from linux_tree import Level, Tree

from jax_nano import _native
from jax_nano.__main__ import info
from jax_nano.machine import control_groups, host, topology, x86

MIB = 1 << 10  # in KiB


def itself(cpu):
    return [cpu]


def pairs(cpu):
    """Hyperthreads beside each other, as cloud guests number them."""
    return [cpu & ~1, cpu | 1]


def halves(cpus):
    """Hyperthreads as firmware numbers them: the second one of each core after all first ones."""
    return lambda cpu: [cpu % (cpus // 2), cpu % (cpus // 2) + cpus // 2]


def ranges(size):
    return lambda cpu: range(cpu // size * size, cpu // size * size + size)


def upto(cpus):
    return lambda cpu: range(cpus)


def three(l1, l2, l3, siblings, last):
    return (
        Level(1, l1[0], l1[1], siblings, "Data"),
        Level(1, 32, 8, siblings, "Instruction"),
        Level(2, l2[0], l2[1], siblings),
        Level(3, l3[0], l3[1], last),
    )


def epyc(root):
    """EPYC 7763, one socket: 64 cores of two hyperthreads, eight caches of 32 MiB."""
    siblings = halves(128)

    def chiplet(cpu):
        first = cpu % 64 // 8 * 8
        return [*range(first, first + 8), *range(first + 64, first + 72)]

    return Tree(root, 128, siblings, three((32, 8), (512, 8), (32 * MIB, 16), siblings, chiplet))


def xeon(root):
    """Two sockets of Xeon Platinum 8480+: 112 cores of two hyperthreads, 105 MiB each socket."""
    siblings = halves(224)

    def socket(cpu):
        first = cpu % 112 // 56 * 56
        return [*range(first, first + 56), *range(first + 112, first + 168)]

    return Tree(root, 224, siblings, three((48, 12), (2 * MIB, 16), (105 * MIB, 15), siblings, socket))


def guest(root):
    """A cloud's guest of 4 virtual processors: 2 cores."""
    return Tree(root, 4, pairs, three((48, 12), (2 * MIB, 16), (105 * MIB, 15), pairs, upto(4)))


def core_12900k(root):
    """Core i9-12900K: 8 performance cores of two hyperthreads, 8 efficiency cores in clusters of four."""
    fast = range(16)

    def siblings(cpu):
        return pairs(cpu) if cpu in fast else [cpu]

    levels = (
        Level(1, 48, 12, siblings, "Data", lambda cpu: cpu < 16),
        Level(1, 32, 8, itself, "Data", lambda cpu: cpu >= 16),
        Level(2, 1280, 10, siblings, owners=lambda cpu: cpu < 16),
        Level(2, 2 * MIB, 16, ranges(4), owners=lambda cpu: cpu >= 16),
        Level(3, 30 * MIB, 12, upto(24)),
    )
    return Tree(root, 24, siblings, levels, fast=fast, slow=range(16, 24))


def sierra_forest(root):
    """Xeon 6780E: 144 efficiency cores, four to an L2 of 4 MiB, and no others."""
    levels = (
        Level(1, 32, 8, itself, "Data"),
        Level(2, 4 * MIB, 16, ranges(4)),
        Level(3, 108 * MIB, 12, upto(144)),
    )
    return Tree(root, 144, itself, levels)


def ryzen_7950x3d(root):
    """Ryzen 9 7950X3D: 16 cores, one last-level cache of 96 MiB and one of 32."""
    siblings = halves(32)

    def chiplet(first):
        return lambda cpu: [*range(first, first + 8), *range(first + 16, first + 24)]

    levels = (
        Level(1, 32, 8, siblings, "Data"),
        Level(2, 1 * MIB, 8, siblings),
        Level(3, 96 * MIB, 16, chiplet(0), owners=lambda cpu: cpu % 16 < 8),
        Level(3, 32 * MIB, 16, chiplet(8), owners=lambda cpu: cpu % 16 >= 8),
    )
    return Tree(root, 32, siblings, levels)


def here(root):
    """Two virtual processors of an EPYC of Zen 5, one to a core."""
    return Tree(root, 2, itself, three((48, 12), (1 * MIB, 16), (32 * MIB, 16), itself, upto(2)))


ALL = {
    "EPYC": (epyc, 64, 8, [(32, 8), (512, 8), (32 * MIB, 16)]),
    "Xeon": (xeon, 112, 2, [(48, 12), (2 * MIB, 16), (105 * MIB, 15)]),
    "guest": (guest, 2, 1, [(48, 12), (2 * MIB, 16), (105 * MIB, 15)]),
    "Core i9-12900K": (core_12900k, 16, 1, [(48, 12), (1280, 10), (30 * MIB, 12)]),
    "Sierra Forest": (sierra_forest, 144, 1, [(32, 8), (1 * MIB, 4), (108 * MIB, 12)]),
    "Ryzen 9 7950X3D": (ryzen_7950x3d, 16, 2, [(32, 8), (1 * MIB, 8), (32 * MIB, 16)]),
    "two virtual processors": (here, 2, 1, [(48, 12), (1 * MIB, 16), (32 * MIB, 16)]),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads the topology of a machine, whose tree is written once."""
    trees = {}

    def read(machine, affinity=None):
        if machine not in trees:
            trees[machine] = machine(tmp_path_factory.mktemp("linux"))
            trees[machine].write()
        tree = trees[machine]
        return topology.read(tree.root, range(tree.cpus) if affinity is None else affinity)

    return read


def sizes(found):
    return [(cache.bytes >> 10, cache.ways) for cache in found.caches]


@pytest.mark.parametrize("name", ALL)
def test_a_machine_as_linux_describes_it(name, read):
    tree, threads, llcs, caches = ALL[name]
    found = read(tree)
    assert (found.threads, found.llcs, sizes(found)) == (threads, llcs, caches)
    assert [cache.shared for cache in found.caches] == [False, False, True]


# Affinity and hyperthreads


@pytest.mark.parametrize(
    ("affinity", "threads", "processors"),
    [([0], 1, 1), ([0, 64], 1, 2), ([0, 1], 2, 2), ([0, 64, 65], 2, 3), (range(64), 64, 64), (range(64, 80), 16, 16)],
)
def test_threads_are_cores_within_the_affinity(read, affinity, threads, processors):
    found = read(epyc, affinity)
    assert (found.threads, found.processors) == (threads, processors)


def test_last_level_caches_are_those_of_the_affinity(read):
    assert read(epyc, range(8)).llcs == 1
    assert read(epyc, [0, 8, 16]).llcs == 3
    assert sizes(read(ryzen_7950x3d, range(8)))[2] == (96 * MIB, 16)
    assert sizes(read(ryzen_7950x3d, range(8, 16)))[2] == (32 * MIB, 16)


@pytest.mark.parametrize("affinity", [[5], [4, 6], [1, 6], None])
def test_a_core_has_its_share_of_an_l2_that_several_have_whatever_the_affinity(read, affinity):
    assert sizes(read(sierra_forest, affinity) if affinity else read(sierra_forest))[1] == (MIB, 4)
    ways = {cache.level: cache.way_bytes for cache in read(sierra_forest, affinity or range(8)).caches}
    assert ways[2] == (4 << 20) // 16, "addresses conflict as in all of the cache"


def test_hyperthreads_share_what_one_core_has(read):
    assert sizes(read(guest, [0, 1]))[1] == (2 * MIB, 16)


def test_what_a_hypervisor_says_of_cores_is_not_relied_on(tmp_path):
    tree = guest(tmp_path)
    tree.limits["proc/cpuinfo"] = "processor\t: 0\nflags\t\t: fpu fma hypervisor avx2\n"
    assert topology.read(tree.write(), range(4)).threads == 4


def test_older_kernels_call_siblings_otherwise(tmp_path):
    root = guest(tmp_path).write()
    for file in root.glob("sys/devices/system/cpu/cpu*/topology/core_cpus_list"):
        file.rename(file.with_name("thread_siblings_list"))
    assert topology.read(root, range(4)).threads == 2


def test_the_affinity_is_linux_own(tmp_path):
    found = topology.read(Tree(tmp_path, 0).write())
    assert found.processors == len(os.sched_getaffinity(0))


# Hybrids


@pytest.mark.parametrize(
    ("affinity", "threads", "slow"),
    [(range(24), 16, 8), (range(16), 8, 0), (range(16, 24), 8, 0), ([0, 1, 20], 2, 1), ([23], 1, 0)],
)
def test_efficiency_cores_are_slow_beside_performance_cores(read, affinity, threads, slow):
    found = read(core_12900k, affinity)
    assert (found.threads, found.slow_threads) == (threads, slow)


def test_caches_are_those_of_a_performance_core_where_there_is_one(read):
    assert sizes(read(core_12900k, [0, 16]))[:2] == [(48, 12), (1280, 10)]
    assert sizes(read(core_12900k, range(16, 20)))[:2] == [(32, 8), (512, 4)]


@pytest.mark.parametrize(("quota", "threads", "slow"), [(4, 4, 0), (8.5, 9, 1), (12, 12, 4), (99, 16, 8)])
def test_a_quota_leaves_slow_cores_out_first(read, quota, threads, slow):
    found = replace(read(core_12900k), quota=quota)
    assert (found.threads, found.slow_threads) == (threads, slow)


# Control groups

V2 = "30 20 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "22 1 0:21 / /proc rw shared:12 - proc proc rw\n34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
GROUP = "/sys/fs/cgroup"


def limited(root, groups, mounts, limits):
    limits = {path.lstrip("/"): text for path, text in limits.items()}
    return Tree(root, 8, groups=groups, mounts=f"{OTHER}\n{mounts}", limits=limits).write()


def v1(place, quota, period=100_000):
    place = f"{GROUP}/cpu,cpuacct{place}"
    return {f"{place}/cpu.cfs_quota_us": str(quota), f"{place}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("groups", "mounts", "limits", "quota"),
    [
        ("0::/", V2, {}, math.inf),
        ("0::/", V2, {f"{GROUP}/cpu.max": "150000 100000"}, 1.5),
        ("0::/", V2, {f"{GROUP}/cpu.max": "max 100000"}, math.inf),
        ("0::/a/b", V2, {f"{GROUP}/a/b/cpu.max": "400000 100000", f"{GROUP}/a/cpu.max": "50000 20000"}, 2.5),
        ("0::/a/b", V2, {f"{GROUP}/a/b/cpu.max": "100000 100000", f"{GROUP}/a/cpu.max": "max 100000"}, 1),
        ("0::/a", V2, {f"{GROUP}/b/cpu.max": "100000 100000"}, math.inf),
        ("0::/../../other", V2, {f"{GROUP}/cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/", V1.format(top="/"), v1("", -1), math.inf),
        ("4:cpu,cpuacct:/a", V1.format(top="/"), v1("/a", 250_000), 2.5),
        ("4:cpu,cpuacct:/a/b", V1.format(top="/"), v1("/a", 100_000) | v1("/a/b", -1), 1),
        ("4:cpu,cpuacct:/docker/1f", V1.format(top="/docker/1f"), v1("", 200_000, 50_000), 4),
        ("4:cpu,cpuacct:/docker/1f/x", V1.format(top="/docker/1f"), v1("/x", 200_000), 2),
        ("4:memory:/a\n2:cpuset:/a", V1.format(top="/"), v1("/a", 100_000), math.inf),
        ("4:cpu,cpuacct:/a\n0::/a", f"{V1.format(top='/')}\n{V2}",
         v1("/a", 300_000) | {f"{GROUP}/a/cpu.max": "200000 100000"}, 2),
    ],
    ids=["none", "at the top", "max", "of the parent", "of the child", "of another", "outside", "v1 none", "v1",
         "v1 of the parent", "v1 of a container", "v1 within a container", "v1 of others", "both versions"],
)  # fmt: skip
def test_the_quota_is_the_least_of_all_groups(tmp_path, groups, mounts, limits, quota):
    root = limited(tmp_path, groups, mounts, limits)
    assert control_groups.quota(root) == quota
    assert topology.read(root, range(8)).threads == min(8, math.ceil(min(quota, 8)))


@pytest.mark.parametrize(("quota", "threads"), [(0.25, 1), (1, 1), (1.5, 2), (2, 2), (7.01, 8), (64, 8)])
def test_a_part_of_a_processor_is_worth_a_thread(quota, threads):
    cores = tuple(frozenset({cpu}) for cpu in range(8))
    assert topology.Topology(cores=cores, quota=quota).threads == threads


@pytest.mark.parametrize(
    ("tree", "quota", "text"),
    [
        (here, math.inf, ""),
        (here, 2, ""),
        (here, 1.5, "a quota of 1.5 processors"),
        (epyc, 4, "128 hyperthreads on 64 cores, a quota of 4 processors, 8 last-level caches"),
        (core_12900k, math.inf, "24 hyperthreads on 16 cores, 8 of 16 cores are slower"),
    ],
)
def test_a_topology_says_why_threads_are_fewer_than_processors(read, tree, quota, text):
    assert str(replace(read(tree), quota=quota)) == text


def test_info_says_it(read, monkeypatch):
    monkeypatch.setattr(host, "topology", lambda: replace(read(guest), quota=1.5))
    monkeypatch.setattr(host, "machine", lambda: replace(host.known("znver5"), threads=2, stands_for="generic"))
    lines = info(argparse.Namespace()).splitlines()
    assert "known as    znver5 (a guess for generic), 2 threads" in lines
    assert "threads     4 hyperthreads on 2 cores, a quota of 1.5 processors" in lines


# What makes no sense


@pytest.mark.parametrize("text", ["", "nonsense", "0-", "-1", "5-x,", "\x00", "7-99999999999999"])
def test_odd_lists_count_as_none(tmp_path, text):
    root = Tree(tmp_path, 4, itself, epyc(tmp_path).levels).write()
    for name in ("topology/core_cpus_list", "cache/index3/shared_cpu_list", "cache/index2/shared_cpu_list"):
        for file in root.glob(f"sys/devices/system/cpu/cpu*/{name}"):
            file.write_text(text)
    (root / "sys/devices/cpu_core").mkdir()
    (root / "sys/devices/cpu_core/cpus").write_text(text)
    found = topology.read(root, range(4))
    assert (found.threads, found.slow_threads) == (4, 0)


@pytest.mark.parametrize("name", ["size", "level", "ways_of_associativity", "type"])
def test_odd_caches_are_left_to_the_table(tmp_path, name):
    root = here(tmp_path).write()
    (root / f"sys/devices/system/cpu/cpu0/cache/index2/{name}").write_text("?")
    found = topology.read(root, range(2))
    assert found.threads == 2
    if name != "type":
        assert host.on_topology(x86.MACHINES[0], found).caches == x86.MACHINES[0].caches


def test_caches_without_an_l1_are_left_to_the_table(tmp_path):
    root = here(tmp_path).write()
    (root / "sys/devices/system/cpu/cpu0/cache/index0/ways_of_associativity").write_text("0")
    assert topology.read(root, range(2)).caches == ()


@pytest.mark.parametrize("limit", ["", "1", "x y", "100000 0", "-5 100", "1 2 3"])
def test_odd_limits_are_none(tmp_path, limit):
    assert control_groups.quota(limited(tmp_path, "0::/", V2, {f"{GROUP}/cpu.max": limit})) == math.inf


@pytest.mark.parametrize(
    ("groups", "mounts"), [("", ""), ("nonsense", V2), ("0::/", "nonsense"), ("0::/", "1 2 - cgroup2")]
)
def test_odd_groups_are_none(tmp_path, groups, mounts):
    assert control_groups.quota(limited(tmp_path, groups, mounts, {})) == math.inf


def test_without_proc_and_sys_there_is_a_thread_a_processor(tmp_path):
    found = topology.read(tmp_path, [3, 5])
    assert (found.threads, found.slow_threads, found.caches, found.quota, found.llcs) == (2, 0, (), math.inf, 1)


# The machine that plans are made for


def test_a_machine_has_the_threads_and_caches_of_its_topology(read):
    machine = host.on_topology(host.known("alderlake"), read(core_12900k))
    assert (machine.threads, machine.slow_threads, machine.slow_speed) == (16, 8, 0.37)
    assert machine.llc.bytes == 30 << 20


@pytest.mark.parametrize("tree", [guest, here])
def test_kernels_run_on_no_more_threads_than_there_are_cores(read, monkeypatch, tree):
    limits = []
    monkeypatch.setattr(_native, "limit_threads", limits.append)
    monkeypatch.setattr(host, "topology", lambda: read(tree))
    host.detected.cache_clear()
    try:
        assert host.detected().threads == 2
    finally:
        host.detected.cache_clear()
    assert limits == [2]
