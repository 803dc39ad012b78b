"""What XLA's code for the products of a loop is predicted to take."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.reader import read_scan
from jax_nano.jaxpr.pipelines.scans import Scan
from jax_nano.lowering.loop_cost import gone_across, other_seconds, scalar_stages
from jax_nano.machine.host import machine_for, target
from jax_nano.schedule.pipelines.choose import choose_pipeline


def pipeline(step, *shapes, length=1000):
    """That of a scan, the last array being what it carries."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loop(*arrays):
        return lax.scan(lambda x, _: (step(*arrays[:-1], x), None), arrays[-1], None, length=length)[0]

    scan = Scan.of(jax.make_jaxpr(loop)(*arrays).jaxpr.eqns[0].params)
    scan = Scan(inlined(scan.jaxpr), scan.constants, scan.carries, scan.length, scan.reverse)
    return read_scan(scan, arrays)


def seconds(step, *shapes):
    machine, whole = machine_for(), pipeline(step, *shapes)
    return other_seconds(choose_pipeline(whole, machine, target(machine)), whole, machine)


@pytest.mark.parametrize(
    "step, across",
    [
        (lambda w, x: w @ x, [False]),
        (lambda w, x: w.T @ (w @ x), [False, True]),
        (lambda w, x: w @ jnp.tanh(w @ x), [False, False]),
    ],
)
def test_products_across_the_rows_of_an_array_are_found(step, across):
    products = [stage for stage, _ in pipeline(step, (8, 8), (8,)).contractions]
    assert gone_across(products) == across


def test_xla_takes_long_where_a_step_goes_through_an_array_both_ways():
    """On Zen 5, a step of w.T @ (w @ x) takes 5 to 10 times as long as one of w @ (w @ x), from 24 rows on."""
    both = seconds(lambda w, x: w.T @ (w @ x), (64, 64), (64,))
    assert both > 4 * seconds(lambda w, x: w @ (w @ x), (64, 64), (64,))


def test_elements_that_are_gone_through_one_by_one_are_found():
    """XLA computes a cumulative sum by one operation, along one axis and across others."""
    (scalar,) = scalar_stages(pipeline(lambda w, x: jnp.cumsum(w @ x), (16, 16), (16,)).stages)
    assert scalar.sizes == ()
    assert not [*scalar_stages(pipeline(lambda w, x: jnp.cumsum(w @ x, 0), (16, 16), (16, 8)).stages)]
