"""Task interaction scores on values made by hand."""

import numpy as np
import pytest

from m4.eval import tim


def additive(gain):
    """v_i(S) = 0.5 + sum of gain[j, i] over the other tasks j of S."""
    gain = np.asarray(gain, float)

    def train(mask):
        others = mask[:, None] & ~np.eye(len(mask), dtype=bool)
        return np.where(mask, 0.5 + (gain * others).sum(0), np.nan)

    return tim.cached(train, len(gain))


GAIN = [[0, 0.1, 0.0], [0.2, 0, 0.0], [-0.1, 0.05, 0]]


def test_additive_gains_are_found_by_all_three():
    value = additive(GAIN)
    np.testing.assert_allclose(tim.shapley(value, 3), GAIN, atol=1e-12)
    np.testing.assert_allclose(tim.pairwise(value, 3), np.array(GAIN) / 0.5, atol=1e-12)
    np.testing.assert_allclose(tim.leave_one_out(value, 3), np.array(GAIN) / 0.5, atol=1e-12)


def random_value(num_tasks, seed=0):
    """A game without any structure."""
    rng = np.random.default_rng(seed)
    return tim.cached(lambda mask: np.where(mask, rng.random(num_tasks), np.nan), num_tasks)


def test_shapley_values_sum_to_the_whole_gain():
    value = random_value(5)
    everyone = value(frozenset(range(5)))
    alone = [value(frozenset({i}))[i] for i in range(5)]
    np.testing.assert_allclose(tim.shapley(value, 5).sum(0), everyone - alone, atol=1e-12)


def test_a_task_that_changes_nothing_is_worth_nothing_and_equals_share():
    def train(mask):  # task 3 is a dummy; 1 and 2 are worth something to 0 only together
        return np.where(mask, 0.5 + 0.2 * (mask[1] and mask[2]) * (np.arange(4) == 0), np.nan)

    found = tim.shapley(tim.cached(train, 4), 4)
    np.testing.assert_allclose(found[3], 0.0, atol=1e-12)
    np.testing.assert_allclose(found[[1, 2], 0], 0.1, atol=1e-12)


def test_sampling_approaches_the_exact_value_and_keeps_the_sum():
    value = random_value(5)
    exact = tim.shapley(value, 5)
    sampled = tim.shapley(value, 5, num_permutations=200)
    np.testing.assert_allclose(sampled, exact, atol=0.05)
    np.testing.assert_allclose(sampled.sum(0), exact.sum(0), atol=1e-12)


def test_every_coalition_is_trained_once():
    seen = []

    def train(mask):
        seen.append(tuple(mask))
        return np.ones(4)

    value = tim.cached(train, 4)
    tim.shapley(value, 4)
    tim.pairwise(value, 4)
    tim.leave_one_out(value, 4)
    assert len(seen) == len(set(seen)) == 2**4 - 1


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_few_tasks(num_tasks):
    found = tim.shapley(additive(np.zeros((num_tasks, num_tasks))), num_tasks)
    assert found.shape == (num_tasks, num_tasks) and not found.any()
