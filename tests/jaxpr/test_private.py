"""What JAX does not promise and jax_nano uses: where a version of JAX moves it, a test says what broke."""

import pathlib
import re

import jax
import jax.export
import jax.extend.backend
import jax.numpy as jnp
import pytest
from jax.extend.core.primitives import dot_general_p, jit_p
from jax.interpreters import mlir
from jax.sharding import PartitionSpec as P

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


def test_a_rule_for_all_platforms_chooses_where_a_program_is_for_several():
    primitive = jax.extend.core.Primitive("of_several_platforms")
    primitive.def_abstract_eval(lambda x: x)
    sin, cos = (mlir.lower_fun(f, multiple_results=False) for f in (jnp.sin, jnp.cos))
    mlir.register_lowering(primitive, private.by_platform({"cpu": sin}, cos), cacheable=False)
    for platforms, expected in ((("cpu",), (1, 0)), (("tpu",), (0, 1)), (("cpu", "tpu"), (1, 1))):
        text = jax.export.export(jax.jit(primitive.bind), platforms=platforms)(1.0).mlir_module()
        assert (text.count("stablehlo.sine"), text.count("stablehlo.cosine")) == expected


def test_shardings_of_xla_are_read_and_written():
    mesh = jax.sharding.AbstractMesh((2, 2), ("a", "b"))
    for spec in (P(), P(("a",)), P((), ("b",)), P(("a", "b")), P(("b",), ("a",))):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        known = private.spec_of(private.xla_sharding(sharding, 2), mesh)
        assert jax.sharding.NamedSharding(mesh, known).is_equivalent_to(sharding, 2)


def test_shardy_is_used_by_default():
    assert private.is_shardy_used()


def test_the_program_of_a_shard_has_collectives():
    mesh = jax.sharding.AbstractMesh((2,), ("a",))
    avals = [jax.ShapeDtypeStruct((4,), jnp.float32)]
    code = private.shard_program(lambda x: [jax.lax.psum(x, "a")], avals, mesh, jax.extend.backend.get_backend("cpu"))
    assert b"all_reduce" in code


def test_random_keys_have_an_implementation_on_words():
    found = private.implementation_of_keys(jax.random.key(0).dtype)
    assert found.key_shape == (2,)
    words = jax.random.key_data(jax.random.key(5))
    assert jnp.array_equal(found.split(words, (3,)), jax.random.key_data(jax.random.split(jax.random.key(5), 3)))
    assert jnp.array_equal(found.random_bits(words, 32, (4,)), jax.random.bits(jax.random.key(5), (4,)))
