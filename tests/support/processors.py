"""Which processors tests of plans go through."""

from jax_nano.machine import x86

# One of those with the same cores: others differ in caches and bandwidth only.
KINDS = tuple({tuple(machine.cores.items()): machine for machine in reversed(x86.MACHINES)}.values())[::-1]
