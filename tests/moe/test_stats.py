"""Statistics of a routing by hand."""

import numpy as np
import pytest

from m4.moe import losses
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


MODALITY = {"modality_N": np.array([0, 1, 1, 0]), "num_modalities": 2, "train": False}
LOST = np.array([[False, False], [True, True], [False, True], [False, False]])


def test_shares_and_means():
    """Counts 3, 2, 1, 0 of 6; weights 2, .5, .5, 0 of 3; margins 0, 0, .6."""
    stats = losses.statistics(ROUTING, None, **MODALITY)
    np.testing.assert_allclose(stats["load"], [3 / 6, 2 / 6, 1 / 6, 0], rtol=1e-6)
    np.testing.assert_allclose(stats["importance"], [2 / 3, 0.5 / 3, 0.5 / 3, 0], rtol=1e-6)
    entropy = np.log(2) + np.log(4) - (0.7 * np.log(0.7) + 0.3 * np.log(0.1))
    assert stats["entropy"] == pytest.approx(entropy / 3, rel=1e-6)
    assert stats["margin"] == pytest.approx(0.2, rel=1e-6)
    assert stats["gini"] == pytest.approx(10 / 24) and stats["max_vio"] == pytest.approx(1.0)
    assert stats["dropped"] == 0 and "dropped_by_modality" not in stats and "by_row" not in stats


def test_what_was_lost():
    """Tokens 1 and 2, of modality 1, lose 2 and 1 of all 6 assignments."""
    stats = losses.statistics(
        ROUTING, LOST, num_rows=2, task_N=np.array([0, 0, 1, 1]), num_tasks=2, **MODALITY
    )
    assert stats["dropped"] == 0.5
    np.testing.assert_array_equal(stats["dropped_by_modality"], [0, 3])
    np.testing.assert_array_equal(stats["dropped_by_task"], [2, 1])
    np.testing.assert_array_equal(stats["dropped_by_row"], [2, 1])


def test_counts():
    stats = losses.statistics(ROUTING, None, num_rows=2, **MODALITY)
    np.testing.assert_array_equal(stats["by_modality"], [[1, 1, 0, 0], [2, 1, 1, 0]])
    np.testing.assert_array_equal(stats["by_row"][0], [[1, 1, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(stats["by_row"][1], [[0, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(
        stats["coactivation"], [[3, 2, 1, 0], [2, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    )
    with pytest.raises(ValueError, match="4 tokens cannot be 3 rows"):
        losses.statistics(ROUTING, None, num_rows=3, **MODALITY)


def test_nothing_routed_is_finite_and_even():
    nowhere = ROUTING.replace(
        experts=np.full((4, 2), 4), weights=0 * ROUTING.weights, valid=np.zeros(4, bool)
    )
    stats = losses.statistics(nowhere, None, num_rows=2, **MODALITY)
    assert all(np.isfinite(value).all() for value in stats.values())
    assert stats["max_vio"] == stats["cv"] == stats["gini"] == stats["dead"] == 0
