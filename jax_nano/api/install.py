"""Installation: every product of every JAX program through jax_nano, until it is undone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial

import jax
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p, reduce_window_max_p

from jax_nano import config
from jax_nano.jaxpr.private import LoweringRule, ReplacedLowering, ReplacedTransposition, ragged_dot_general_p
from jax_nano.lowering import convolution, dot_general, grouped, pooling
from jax_nano.lowering import loops as loops  # whose lowering this module switches on
from jax_nano.lowering.cotangents import transpose_rule
from jax_nano.lowering.export import unless_exported


def install() -> None:
    """Makes every product on CPUs jax_nano's: those of jnp, flax, equinox, optax and all that is built on JAX.

    Products are lax.dot_general, lax.ragged_dot_general and lax.conv_general_dilated. Loops of them are one kernel
    where that is predicted to be faster.

    Programs compiled before are forgotten (jax.clear_caches) and compiled anew when next called, except those that the
    caller holds from `.lower().compile()`. Calling it again changes nothing. What jax_nano has no kernel for runs as
    before; `jax_nano.inspect` says why. So does what jax.export makes, unless `exporting_kernels` asks for them. Does
    nothing where JAX_NANO=0 is in the environment.
    """
    _switch.turn(wanted=True)


def uninstall() -> None:
    """Undoes install(): gives products their original lowerings back and forgets the programs compiled meanwhile.

    While a block of `installed()` is open in some thread, it takes effect when the last one ends.
    """
    _switch.turn(wanted=False)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Installs jax_nano for a block of code, in all threads. Blocks may nest, and overlap between threads."""
    _switch.turn(blocks=+1)
    try:
        yield
    finally:
        _switch.turn(blocks=-1)


class _Switch:
    """Which CPU lowerings and transposition products have, and who wants ours."""

    def __init__(self):
        self.lock = threading.Lock()
        self.wanted = False  # by install()
        self.blocks = 0  # of installed(), open in any thread
        self.replaced: list[ReplacedLowering | ReplacedTransposition] = []  # while ours are in their places

    def turn(self, *, wanted: bool | None = None, blocks: int = 0) -> None:
        with self.lock:
            self.wanted = self.wanted if wanted is None else wanted
            self.blocks += blocks
            wanted = (self.wanted or self.blocks > 0) and config.enabled()
            if wanted != bool(self.replaced):
                self.exchange()
                jax.clear_caches()

    def exchange(self) -> None:
        if self.replaced:
            for replaced in self.replaced:
                replaced.restore()
            self.replaced = []
        else:
            self.replaced = [
                ReplacedLowering(primitive, partial(_for_kernels, lowering=lowering))
                for primitive, lowering in LOWERINGS.items()
            ]
            self.replaced.append(ReplacedTransposition(dot_general_p, transpose_rule))


LOWERINGS = {
    dot_general_p: dot_general.lowering,
    conv_general_dilated_p: convolution.lowering,
    ragged_dot_general_p: grouped.lowering,
    reduce_window_max_p: pooling.lowering,
}


def _for_kernels(original: LoweringRule, lowering: Callable[[LoweringRule], LoweringRule]) -> LoweringRule:
    return unless_exported(lowering(original), original)


_switch = _Switch()
