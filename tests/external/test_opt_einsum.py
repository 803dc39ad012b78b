"""opt_einsum's own contraction tests, with jax_nano's einsum and tensordot behind its NumPy backend.

Every contraction is also compared with what NumPy makes of it.
"""

import jax
import numpy as np
import pytest
from opt_einsum.backends import dispatch
from opt_einsum.tests.test_contract import (  # noqa: F401 - collected from here
    test_compare,
    test_compare_blas,
    test_compare_blas_greek,
    test_compare_greek,
    test_contract_expression_interleaved_input,
    test_contract_expression_with_constants,
    test_contract_expressions,
    test_contract_path_supply_shapes,
    test_contract_plain_types,
    test_drop_in_replacement,
    test_linear_vs_ssa,
    test_printing,
    test_rand_equation,
    test_some_non_alphabet_maintains_order,
)
from opt_einsum.tests.test_edge_cases import (  # noqa: F401
    test_broadcasting_contraction,
    test_broadcasting_contraction2,
    test_broadcasting_contraction3,
    test_broadcasting_contraction4,
    test_can_blas_on_healed_broadcast_dimensions,
    test_contract_expression_checks,
    test_contract_with_assumed_shapes,
    test_pathinfo_for_empty_contraction,
)

import jax_nano


def checked(ours, numpys):
    """`ours` as opt_einsum calls NumPy: with lists and `out`, and a ValueError for sizes that do not match."""

    def contract(*args, out=None, **kwargs):
        args = [np.asarray(x) if isinstance(x, list) else x for x in args]
        try:
            result = np.asarray(ours(*args, **kwargs))
        except TypeError as error:
            raise ValueError(error) from error
        np.testing.assert_allclose(result, numpys(*args, **kwargs), rtol=1e-11, atol=1e-11)
        if out is None:
            return result
        out[...] = result
        return out

    return contract


@pytest.fixture(autouse=True)
def behind_numpys_backend(monkeypatch):
    for name in ("einsum", "tensordot"):
        monkeypatch.setitem(
            dispatch._cached_funcs, (name, "numpy"), checked(getattr(jax_nano, name), getattr(np, name))
        )
    with jax.enable_x64(True):
        yield
