"""Loops are kernels here whether that is predicted to be faster or not, unless a test asks for the rule."""

import pytest

from jax_nano.lowering import loops


@pytest.fixture(autouse=True)
def always(request, monkeypatch):
    if not request.node.get_closest_marker("rule"):
        monkeypatch.setattr(loops, "check_is_faster", lambda *_: None)
