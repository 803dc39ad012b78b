"""Installation: every product of every JAX program through jax_nano, until it is undone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import jax
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import mlir

from jax_nano import config
from jax_nano.jaxpr.private import LoweringRule, ReplacedLowering
from jax_nano.lowering.dot_general import lowering


def install() -> None:
    """Makes every lax.dot_general on CPUs a jax_nano product: jnp, flax, equinox, optax and all that is built on JAX.

    Programs compiled before are forgotten (jax.clear_caches) and compiled anew when next called, except those that the
    caller holds from `.lower().compile()`. Calling it again changes nothing. What jax_nano has no kernel for runs as
    before; `jax_nano.inspect` says why. So does what jax.export makes: a program for other machines than this one. Does
    nothing where JAX_NANO=0 is in the environment.
    """
    _switch.turn(wanted=True)


def uninstall() -> None:
    """Undoes install(): gives lax.dot_general its original lowering back and forgets the programs compiled meanwhile.

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
    """Which CPU lowering lax.dot_general has, and who wants ours."""

    def __init__(self):
        self.lock = threading.Lock()
        self.wanted = False  # by install()
        self.blocks = 0  # of installed(), open in any thread
        self.replaced: ReplacedLowering | None = None  # while ours is in its place

    def turn(self, *, wanted: bool | None = None, blocks: int = 0) -> None:
        with self.lock:
            self.wanted = self.wanted if wanted is None else wanted
            self.blocks += blocks
            wanted = (self.wanted or self.blocks > 0) and config.enabled()
            if wanted != (self.replaced is not None):
                self.exchange()
                jax.clear_caches()

    def exchange(self) -> None:
        if self.replaced is None:
            self.replaced = ReplacedLowering(dot_general_p, _unless_exported)
        else:
            self.replaced.restore()
            self.replaced = None


def _unless_exported(original: LoweringRule) -> LoweringRule:
    kernel = lowering(original)

    def lower(ctx: mlir.LoweringRuleContext, *operands, **params):
        exported = ctx.module_context.lowering_parameters.for_export
        return (original if exported else kernel)(ctx, *operands, **params)

    return lower


_switch = _Switch()
