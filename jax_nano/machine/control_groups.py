"""The processor time that Linux's control groups grant this process, in both versions of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Hierarchy(NamedTuple):
    """A tree of control groups that divides processor time, as it is mounted."""

    version: int
    top: PurePosixPath  # the group that is mounted
    mounted: PurePosixPath  # where


def quota(root: Path) -> float:
    """How many processors' time the groups of this process may use: the least that any of them grants.

    Args:
      root: what /proc and /sys are in.

    Returns:
      A number above 0; infinity where nothing limits it.
    """
    try:
        groups, mounts = ((root / "proc/self" / name).read_text() for name in ("cgroup", "mountinfo"))
        return min((granted(*group) for group in directories(groups, mounts, root)), default=math.inf)
    except (OSError, ValueError):
        return math.inf


def directories(groups: str, mounts: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The directories of this process's groups and of those they are in, each with its version."""
    hierarchies = list(hierarchies_in(mounts))
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if "cpu" in controllers.split(",") else 2 if not controllers else 0
        for hierarchy in hierarchies:
            if hierarchy.version == version:
                for group in ancestors(PurePosixPath(path), hierarchy.top):
                    yield root / str(hierarchy.mounted / group).lstrip("/"), version


def hierarchies_in(mounts: str) -> Iterator[Hierarchy]:
    """The hierarchies of control groups in /proc/self/mountinfo that may divide processor time."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if not after.startswith("cgroup"):
            continue
        (top, mounted), (kind, _, options) = before.split()[3:5], after.split(maxsplit=2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield Hierarchy(2 if kind == "cgroup2" else 1, PurePosixPath(top), PurePosixPath(mounted))


def ancestors(group: PurePosixPath, top: PurePosixPath) -> Iterator[PurePosixPath]:
    """A group and all that it is in, relative to the one that is mounted: that alone where the group is not in it."""
    inside = group.relative_to(top) if group.is_relative_to(top) and ".." not in group.parts else PurePosixPath()
    yield from (inside, *inside.parents)


def granted(directory: Path, version: int) -> float:
    """The processors that one group may use; infinity where it has no limit, or does not say."""
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
    try:
        amount, period = map(int, " ".join((directory / name).read_text() for name in names).split())
    except (OSError, ValueError):  # the group at the top has no such file; "max" is no limit
        return math.inf
    return amount / period if amount > 0 and period > 0 else math.inf
