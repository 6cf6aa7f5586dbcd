"""Statistics of a routing by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from m4.moe import stats as diagnostics
from m4.types import Routing

pytestmark = pytest.mark.usefixtures("quick_compile")
# Tokens visit {0, 1}, {0, 2}, {0, 1}; the fourth is invalid. E = 4.
ROUTING = Routing(
    experts=np.int32([[0, 1], [2, 0], [0, 1], [4, 4]]),
    weights=np.float32([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [0.0, 0.0]]),
    probs=np.float32([[0.5, 0.5, 0, 0], [0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0] * 4]),
    logits=np.zeros((4, 4), np.float32),
    valid=np.array([True, True, True, False]),
)


def test_step_stats():
    """Counts 3, 2, 1, 0 of 6; weights 2, .5, .5, 0 of 3; margins 0, 0, .6."""
    stats = diagnostics.step_stats(ROUTING, jnp.float32(0.25))
    np.testing.assert_allclose(stats["load"], [3 / 6, 2 / 6, 1 / 6, 0], rtol=1e-6)
    np.testing.assert_allclose(stats["importance"], [2 / 3, 0.5 / 3, 0.5 / 3, 0], rtol=1e-6)
    entropy = np.log(2) + np.log(4) - (0.7 * np.log(0.7) + 0.3 * np.log(0.1))
    assert stats["entropy"] == pytest.approx(entropy / 3, rel=1e-6)
    assert stats["margin"] == pytest.approx(0.2, rel=1e-6)
    assert stats["dropped"] == 0.25


def test_load_stats():
    """Counts 3, 2, 1, 0: mean 1.5, sd sqrt(1.25); Gini = sum (2i - 5) x_i / (4 * 6) = 10 / 24."""
    stats = diagnostics.load_stats(jnp.float32([3, 2, 1, 0]))
    assert stats["cv"] == pytest.approx(np.sqrt(1.25) / 1.5, rel=1e-6)
    assert stats["max_violation"] == pytest.approx(1.0)
    assert stats["gini"] == pytest.approx(10 / 24)
    assert stats["dead"] == 0.25
    shares = np.array([1 / 2, 1 / 3, 1 / 6])
    assert stats["effective"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-6)


def test_load_stats_at_the_extremes():
    even = diagnostics.load_stats(jnp.full(8, 5.0))
    assert {k: round(float(v), 5) for k, v in even.items()} == {
        "cv": 0, "max_violation": 0, "gini": 0, "dead": 0, "effective": 8
    }  # fmt: skip
    one = diagnostics.load_stats(jnp.zeros(8).at[3].set(5.0))
    assert one["max_violation"] == 7 and one["gini"] == pytest.approx(7 / 8)
    assert one["dead"] == pytest.approx(7 / 8) and one["effective"] == pytest.approx(1.0)
    none = diagnostics.load_stats(jnp.zeros(8))
    assert none["dead"] == 0 and none["max_violation"] == 0 and none["cv"] == 0


def test_counts():
    modality = np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(
        diagnostics.counts(ROUTING, modality, 2), [[1, 1, 0, 0], [2, 1, 1, 0]]
    )
    by_row = diagnostics.counts_by_row(ROUTING, modality, 2, num_rows=2)
    np.testing.assert_array_equal(by_row[0], [[1, 1, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(by_row[1], [[0, 0, 0, 0], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match="4 tokens cannot be 3 rows"):
        diagnostics.counts_by_row(ROUTING, modality, 2, num_rows=3)


def test_coactivation():
    np.testing.assert_array_equal(
        diagnostics.coactivation(ROUTING), [[3, 2, 1, 0], [2, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    )


def test_unserved_by_hand():
    """Four tokens, all first to expert 0, second to 1; capacity 0.5 * 8 / 2 = 2 (rounded up).

    Expert 0 serves tokens 0 and 1, expert 1 too; the others lose both assignments. With
    priority the tokens of the largest best weight, 2 and 3, are served instead.
    """
    routing = Routing(
        experts=np.int32([[0, 1]] * 4),
        weights=np.float32([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.8, 0.2]]),
        probs=np.full((4, 2), 0.5, np.float32),
        logits=np.zeros((4, 2), np.float32),
        valid=np.ones(4, bool),
    )
    for strategy, want in {"capacity": [0, 0, 2, 2], "capacity_prioritised": [2, 2, 0, 0]}.items():
        lost = diagnostics.unserved(routing, strategy=strategy, capacity_factor=0.5)
        per_token = diagnostics.counts(lost, np.arange(4), 4).sum(-1)
        np.testing.assert_array_equal(per_token, want)
