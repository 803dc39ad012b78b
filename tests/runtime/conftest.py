"""What tests of the runtime share."""

import pytest

from jax_nano.runtime import kernels


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache on disk, and a process that has no kernels yet."""
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path / "cache"))
    kernels._kernels.clear()
    yield
    kernels._kernels.clear()
