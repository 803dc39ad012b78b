"""Fusion takes steps in proportion to a program's equations: counted, not timed."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jax_nano.jaxpr.candidates import Candidates
from jax_nano.jaxpr.legality import illegal
from jax_nano.jaxpr.primitives import nano_region_p
from jax_nano.jaxpr.region_reader import RegionReader
from jax_nano.lowering.passes import PASSES, run_passes

WIDTH = 8
# Steps for an equation, on the average: to find it among candidates, to read it, and to make a Dot of it in a region.
MOST = 6


def matrices(*names):
    return {name: jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32) for name in names}


def rows(*shape):
    return jax.ShapeDtypeStruct((*shape, WIDTH), jnp.float32)


def gru(p, h, x):
    z, r = jax.nn.sigmoid(x @ p["wz"] + h @ p["uz"]), jax.nn.sigmoid(x @ p["wr"] + h @ p["ur"])
    return (1 - z) * h + z * jnp.tanh(x @ p["wn"] + (r * h) @ p["un"])


def recurrence(p, xs):
    h = jnp.zeros_like(xs[0])
    for x in xs:
        h = gru(p, h, x)
    return (h * h).sum()


def unrolled(steps):
    return recurrence, (matrices("wz", "wr", "wn", "uz", "ur", "un"), [rows(4)] * steps)


def normalized(x):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def layer(x, p):
    h = normalized(x)
    weights = jax.nn.softmax((h @ p["q"]) @ jnp.swapaxes(h @ p["k"], -1, -2) / 3, axis=-1)
    x = x + (weights @ (h @ p["v"])) @ p["o"]
    h = normalized(x)
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def decoder(ps, x):
    return (functools.reduce(layer, ps, x) ** 2).mean()


def layers(count):
    return decoder, ([matrices("q", "k", "v", "o", "gate", "up", "down")] * count, rows(2, 4))


def training_step(loss):
    def step(ps, *args):
        gradients = jax.grad(loss)(ps, *args)
        moments = jax.tree.map(lambda p, g: 0.9 * p + 0.1 * g, ps, gradients)
        return moments, jax.tree.map(lambda p, m: p - 1e-3 * m / (jnp.sqrt(m * m) + 1e-8), ps, moments)

    return step


def tree(leaves):
    def f(xs, w):
        while len(xs) > 1:
            xs = [jnp.einsum("ij,jk->ik", a, jnp.tanh(b) + w) for a, b in zip(xs[::2], xs[1::2], strict=True)]
        return xs[0]

    return f, ([rows(WIDTH)] * leaves, rows(WIDTH))


def with_step(of):
    f, args = of
    return training_step(f), args


# About 100, 1,000 and 10,000 equations.
PROGRAMS = {
    "recurrence": [unrolled(n) for n in (5, 50, 500)],
    "gradient of a recurrence": [with_step(unrolled(n)) for n in (2, 20, 200)],
    "decoder": [layers(n) for n in (3, 16, 48)],
    "training step of a decoder": [with_step(layers(n)) for n in (1, 5, 48)],
    "tree of einsums": [tree(n) for n in (32, 256, 2048)],
}


def applications(jaxpr):
    """How often rules are applied to the equations of a jaxpr, and the fused jaxpr."""
    count = 0

    def counted(f, number=lambda *_: 1):
        def g(*args):
            nonlocal count
            count += number(*args)
            return f(*args)

        return g

    with (
        mock.patch.object(Candidates, "illegal", counted(Candidates.illegal)),
        mock.patch.object(RegionReader, "_read", counted(RegionReader._read)),
        mock.patch.object(RegionReader, "dot", counted(RegionReader.dot, lambda _, __, mark: 1 + mark.eqns)),
    ):
        fused = PASSES[-1].run(jaxpr)
    return count, fused


@pytest.mark.parametrize("name", PROGRAMS)
def test_rules_are_applied_in_proportion_to_a_program(name):
    for f, args in PROGRAMS[name]:
        jaxpr = run_passes(jax.make_jaxpr(f)(*args).jaxpr, PASSES[:-1])
        count, fused = applications(jaxpr)
        assert any(eqn.primitive is nano_region_p for eqn in fused.eqns)
        assert count <= MOST * len(jaxpr.eqns)


def test_passes_can_be_printed():
    first, *_, last = names = str(PASSES).strip("[]").split(", ")
    assert (first, last) == ("inline", "fuse")
    assert names == [each.name for each in PASSES]


def fused(f, *args):
    return run_passes(jax.make_jaxpr(f)(*args).jaxpr)


def test_equal_layers_have_equal_regions():
    f, args = layers(2)
    regions = [eqn for eqn in fused(f, *args).eqns if eqn.primitive is nano_region_p]
    one, other = regions[: len(regions) // 2], regions[len(regions) // 2 :]
    for a, b in zip(one[:-1], other[:-1], strict=True):  # the last one of all is followed by the loss
        assert a.params["region"] == b.params["region"]
        assert hash(a.params["region"]) == hash(b.params["region"])
    assert one[0].params["region"] != one[-1].params["region"]


def test_the_first_region_knows_the_kernels_of_all():
    f, args = layers(2)
    first, *others = [eqn.params for eqn in fused(f, *args).eqns if eqn.primitive is nano_region_p]
    kernels = [params["region"].kernel for params in (first, *others)]
    assert first["upcoming"] == tuple(dict.fromkeys((kernel.dot, kernel.precision) for kernel in kernels))
    assert not any(params["upcoming"] for params in others)
    assert all(hash(tuple(params.values())) for params in (first, *others))  # nothing in an equation can change


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: x + x, None),
        (lambda x: x.astype(jnp.bfloat16), None),
        (lambda x: x.T, None),
        (lax.cumsum, "cumsum is not elementwise, or has no vector code"),
        (lambda x: lax.rem(x, x), "rem of f32 has no vector code"),
        (lambda x: lax.complex(x, x), "complex is not elementwise, or has no vector code"),
        (lambda x: x.astype(jnp.complex64), "complex64[8,8] is no array of numbers"),
        (lambda x: lax.top_k(x, 2), "it has 2 results"),
    ],
)
def test_the_rule_of_legality_gives_a_reason(f, reason):
    (eqn,) = jax.make_jaxpr(f)(rows(WIDTH)).eqns
    found = illegal(eqn)
    assert found == reason if reason is None or found is None else found.startswith(reason)
