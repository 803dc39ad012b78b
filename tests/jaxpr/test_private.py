"""What JAX does not promise and jax_nano uses: where a version of JAX moves it, a test says what broke."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core.primitives import dot_general_p, jit_p
from jax.interpreters import mlir

import jax_nano
from jax_nano.jaxpr import private

PACKAGE = pathlib.Path(jax_nano.__file__).parent


def test_one_module_imports_what_is_private():
    pattern = re.compile(r"^\s*(?:from|import) jax\._src", re.M)
    assert [path.name for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())] == ["private.py"]


def test_a_jit_without_shardings_says_unspecified():
    (eqn,) = jax.make_jaxpr(jax.jit(jnp.sin))(1.0).eqns
    assert eqn.primitive is jit_p
    assert all(s is private.UNSPECIFIED for s in (*eqn.params["in_shardings"], *eqn.params["out_shardings"]))


def test_policies_answer_true_false_or_recompute():
    avals = [jax.typeof(jnp.ones((2, 2)))] * 2
    params = {"dimension_numbers": (((1,), (0,)), ((), ()))}
    policies = jax.checkpoint_policies
    assert policies.dots_saveable(dot_general_p, *avals, **params) is True
    assert policies.nothing_saveable(dot_general_p, *avals, **params) in (False, private.Recompute)
    by_name = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[], offload_src="device", offload_dst="pinned_host"
    )
    assert by_name(dot_general_p, *avals, **params) in (False, private.Recompute)


@pytest.mark.parametrize("times", [1, 2])
def test_a_lowering_is_replaced_and_restored(times):
    """Of dot_general, which has a rule of its own on CPUs, and of sin, which has none there."""
    for primitive, f in ((dot_general_p, lambda x: x @ x), (jax.lax.sin_p, jnp.sin)):
        for _ in range(times):
            lowered = []

            def replacement(original, lowered=lowered):
                return lambda *args, **params: lowered.append(1) or original(*args, **params)

            replaced = private.ReplacedLowering(primitive, replacement)
            jax.clear_caches()
            jax.jit(f).lower(jnp.ones((2, 2)))
            assert lowered == [1]
            replaced.restore()
            jax.clear_caches()
            jax.jit(f).lower(jnp.ones((2, 2)))
            assert lowered == [1]


def test_lowering_rules_see_operands_of_the_module():
    """Not those of a function that JAX made of a cached rule: transposes could not be read through there."""
    owners = []

    def replacement(original):
        return lambda ctx, *args, **params: owners.append(args[0].owner) or original(ctx, *args, **params)

    replaced = private.ReplacedLowering(dot_general_p, replacement)
    try:
        jax.clear_caches()
        jax.jit(lambda x: x.T @ x).lower(jnp.ones((3, 2)))
    finally:
        replaced.restore()
        jax.clear_caches()
    (owner,) = owners
    assert not isinstance(owner, mlir.ir.Block)
    assert owner.name == "stablehlo.transpose"


def test_rooflines_count_products():
    pytest.importorskip("absl")
    assert callable(private.roofline_rule(dot_general_p))
