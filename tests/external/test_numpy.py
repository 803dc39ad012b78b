"""NumPy's own tests of matmul, dot and inner, computed by jax_nano.

The suite's module sees a NumPy whose products are jax_nano's; they take lists as NumPy's do, and give NumPy arrays.
"""

import functools

import jax
import numpy as np
import pytest
from numpy._core.tests import test_multiarray as suite

import jax_nano


def in_jax(typecodes):
    """Without long double, complex long double and objects, and without long long, which JAX calls int64."""
    return "".join(code for code in typecodes if code not in "gGOqQ")


def adapted(product):
    @functools.wraps(product)
    def numpy_product(a, b):
        a, b = (np.asarray(x) if isinstance(x, list) else x for x in (a, b))
        return np.asarray(product(a, b))[()]

    return numpy_product


def matmul(a, b):
    """JAX says TypeError where sizes do not match; NumPy, ValueError."""
    try:
        return adapted(jax_nano.matmul)(a, b)
    except TypeError as error:
        raise ValueError(error) from error


class NumPy:
    """The `np` of the suite."""

    def __init__(self):
        self.matmul, self.dot, self.inner = matmul, adapted(jax_nano.dot), adapted(jax_nano.inner)
        self.typecodes = {kind: in_jax(codes) for kind, codes in np.typecodes.items()}

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture(autouse=True)
def computed_by_jax_nano(monkeypatch):
    numpy = NumPy()
    monkeypatch.setattr(suite, "np", numpy)
    monkeypatch.setattr(suite, "dot", numpy.dot)
    with jax.enable_x64(True):
        yield


def except_for(**cases):
    """Marks the tests that cannot be JAX's: `test=(mark, reason)`. The suite itself stays as it is."""

    def mark(cls):
        for name, (mark, reason) in cases.items():
            test = getattr(cls, name)
            setattr(
                cls, name, mark(reason=reason)(functools.wraps(test)(lambda *args, test=test, **kw: test(*args, **kw)))
            )
        return cls

    return mark


raises_type_error = functools.partial(pytest.mark.xfail, raises=TypeError, strict=True)


class TestMatmul(suite.MatmulCommon):
    types = in_jax(suite.MatmulCommon.types)
    matmul = staticmethod(matmul)


@except_for(
    test_vecobject=(raises_type_error, "arrays of Python objects"),
    test_dot_3args=(raises_type_error, "writes into an array given as `out`; JAX's arrays are immutable"),
    test_dot_3args_errors=(raises_type_error, "wrong arrays given as `out`"),
    test_dot_out_result=(pytest.mark.skip, "calls the method of NumPy's arrays, with `out`"),
    test_dot_out_aliasing=(pytest.mark.skip, "calls the method of NumPy's arrays, with `out`"),
    test_huge_vectordot=(pytest.mark.skip, "needs 18 GB, for the chunks that BLAS with 32-bit sizes makes"),
)
class TestDot(suite.TestDot):
    pass


class TestInner(suite.TestInner):
    pass
