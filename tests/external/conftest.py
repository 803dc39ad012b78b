"""Marks the suites of other projects, and of opt_einsum's those cases as exhaustive that a few stand for."""

from pathlib import Path

import pytest

# Of opt_einsum's tests with many cases, what those have that run by default; None: none of them does. Every equation is
# contracted twice: by test_drop_in_replacement with the default optimizer, and as an expression with the optimal one.
CHOSEN = {
    "test_contract_expressions": {"optimize": "optimal", "use_blas": True, "out_spec": True},
    "test_rand_equation": {"optimize": "greedy", "n": 5, "reg": 3, "n_out": 2},
    "test_compare": None,
    "test_compare_greek": None,
    "test_compare_blas": None,
    "test_compare_blas_greek": None,
    "test_linear_vs_ssa": None,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("external")
            if item.path.stem == "test_opt_einsum" and exhaustive(item):
                item.add_marker("exhaustive")


def exhaustive(item):
    """Others of opt_einsum's tests stand for this one."""
    if item.originalname not in CHOSEN:
        return False
    chosen = CHOSEN[item.originalname]
    return chosen is None or not chosen.items() <= item.callspec.params.items()
