"""Fixtures of the mixture-of-experts tests."""

import jax
import pytest


@pytest.fixture
def quick_compile():
    """Compile with few optimisations: many small programs, each run once or twice."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
