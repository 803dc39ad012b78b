"""Small programs are kernels here whether that is predicted to be faster or not, unless a test asks for the rule."""

import pytest

from jax_nano.lowering import program_cost


@pytest.fixture(autouse=True)
def always(request, monkeypatch):
    if request.path.name != "test_rule.py":
        monkeypatch.setattr(program_cost, "check_is_faster", lambda *_: None)
