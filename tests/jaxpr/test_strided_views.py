"""Views against NumPy, which does to strides what they do, or copies."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_nano.jaxpr.strided_views import NoView, StridedView, SubDim, common_runs


def elements(view):
    """The places in memory of a view's elements, in its order."""
    places = np.zeros(())
    for dim in view.dims:
        run = np.zeros(())
        for part in dim:
            run = np.add.outer(run, np.arange(part.size) * part.stride)
        places = np.add.outer(places, run.ravel())
    return places.reshape(view.shape)


def places(shape):
    return np.arange(math.prod(shape)).reshape(shape)


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))))
def test_transposes(permutation):
    np.testing.assert_array_equal(
        elements(StridedView.of((2, 3, 4)).transposed(permutation)), places((2, 3, 4)).transpose(permutation)
    )


def test_broadcasts():
    view = StridedView.of((3, 1)).broadcast((2, 3, 4), (1, 2))
    np.testing.assert_array_equal(elements(view), np.broadcast_to(places((3, 1)), (2, 3, 4)))


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.randoms(), st.data())
def test_any_chain_is_right_or_refused(shape, random, data):
    view, array = StridedView.of(shape), places(shape)
    for _ in range(4):
        permutation = random.sample(range(array.ndim), array.ndim)
        view, array = view.transposed(permutation), array.transpose(permutation)
        sizes = data.draw(st.permutations(array.shape))
        half = len(sizes) // 2
        sizes = data.draw(st.sampled_from([list(sizes), [math.prod(sizes)], [math.prod(sizes[:half]), *sizes[half:]]]))
        try:
            view = view.reshaped(sizes)
        except NoView:
            return
        array = array.reshape(sizes)
        np.testing.assert_array_equal(elements(view), array)


def test_dimensions_that_lie_behind_each_other_are_one_run():
    assert StridedView.of((2, 3, 4)).reshaped((24,)).dims == ((SubDim(24, 1),),)


def test_what_strides_cannot_say():
    with pytest.raises(NoView, match="a reshape divides a run of 3 elements into 2"):
        StridedView.of((3, 4)).transposed((1, 0)).reshaped((2, 6)).reshaped((4, 3)).transposed((1, 0)).reshaped((2, 6))


def test_runs_of_two_arrays():
    a, b = StridedView.of((6,)), StridedView.of((2, 3)).transposed((1, 0)).reshaped((6,))
    assert common_runs(a.dims[0], b.dims[0]) == [(3, 2, 1), (2, 1, 3)]
    assert common_runs(b.dims[0], b.dims[0]) == [(3, 1, 1), (2, 3, 3)]
    c = StridedView.of((3, 2)).transposed((1, 0)).reshaped((6,))
    with pytest.raises(NoView, match="runs of 2 and of 3 elements do not divide each other"):
        common_runs(b.dims[0], c.dims[0])
