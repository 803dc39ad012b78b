"""Trees of /proc and /sys as Linux has them on some machine, written from a short description."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Groups = Callable[[int], Iterable[int]]  # the processors that share something with one


@dataclass(frozen=True)
class Level:
    """A cache that some processors have."""

    level: int
    kib: int
    ways: int
    shared: Groups
    kind: str = "Unified"
    owners: Callable[[int], bool] = lambda cpu: True


@dataclass
class Tree:
    """A directory that holds what Linux says of a machine."""

    root: Path
    cpus: int
    siblings: Groups | None = None
    levels: Sequence[Level] = ()
    fast: Iterable[int] = ()
    slow: Iterable[int] = ()
    groups: str = ""  # /proc/self/cgroup
    mounts: str = ""  # /proc/self/mountinfo
    limits: dict[str, str] = field(default_factory=dict)  # text of files, by path

    def write(self) -> Path:
        """Writes all files; returns the directory."""
        for cpu in range(self.cpus):
            self.write_processor(cpu)
        self.put("proc/self/cgroup", self.groups)
        self.put("proc/self/mountinfo", self.mounts)
        for kind, cpus in (("cpu_core", self.fast), ("cpu_atom", self.slow)):
            if cpus:
                self.put(f"sys/devices/{kind}/cpus", listed(cpus))
        for path, text in self.limits.items():
            self.put(path, text)
        return self.root

    def write_processor(self, cpu: int) -> None:
        """Writes what there is of one processor."""
        place = f"sys/devices/system/cpu/cpu{cpu}"
        if self.siblings:
            self.put(f"{place}/topology/core_cpus_list", listed(self.siblings(cpu)))
        owned = (level for level in self.levels if level.owners(cpu))
        for i, level in enumerate(owned):
            facts = {
                "type": level.kind,
                "level": level.level,
                "size": f"{level.kib}K",
                "ways_of_associativity": level.ways,
                "coherency_line_size": 64,
                "shared_cpu_list": listed(level.shared(cpu)),
            }
            for name, value in facts.items():
                self.put(f"{place}/cache/index{i}/{name}", str(value))

    def put(self, path: str, text: str) -> None:
        """Writes one file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def listed(cpus: Iterable[int]) -> str:
    """Numbers as Linux lists them: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1][-1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
