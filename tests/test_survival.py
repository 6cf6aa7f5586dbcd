"""Discrete-time survival by hand: likelihood, predictions, C-index and its bootstrap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sksurv import metrics as oracle

from m4 import task_losses
from m4.eval import metrics
from m4.specs import TaskSpec
from m4.types import Target

TASK = TaskSpec("death", "survival", dim=3, labels=("10", "20", "40"))
HAZARD = np.array([0.1, 0.2, 0.5])
LOGITS = np.log(HAZARD / (1 - HAZARD))
CASES = {  # (time, event) -> minus log-likelihood
    (5, 1): -np.log(0.1),
    (10, 1): -np.log(0.9 * 0.2),  # an interval ends before its right end
    (25, 1): -np.log(0.9 * 0.8 * 0.5),
    (25, 0): -np.log(0.9 * 0.8),  # censored inside the third interval, which does not count
    (5, 0): 0.0,
    (40, 1): -np.log(0.9 * 0.8 * 0.5),  # outlived the last interval: survived all three
    (90, 0): -np.log(0.9 * 0.8 * 0.5),
}


def test_likelihood_by_hand():
    value = np.array([*CASES], np.float32)
    logits = np.tile(LOGITS, (len(CASES), 1))
    loss, mask = task_losses.row_loss(TASK, logits, Target(value, np.ones(len(CASES))))
    np.testing.assert_allclose(loss, [*CASES.values()], rtol=1e-5, atol=1e-7)
    assert mask.all()


def test_garbage_at_masked_labels_reaches_nothing():
    target = Target(np.array([[np.nan, np.nan], [25, 1]], np.float32), np.array([0.0, 1.0]))

    def loss(logits):
        per_row, mask = task_losses.row_loss(TASK, logits, target)
        return jnp.sum(per_row * mask)

    value, grad = jax.value_and_grad(loss)(jnp.tile(jnp.asarray(LOGITS), (2, 1)))
    np.testing.assert_allclose(value, -np.log(0.36), rtol=1e-5)
    assert not grad[0].any() and np.isfinite(grad).all()


def test_predictions_are_chances_of_the_event_so_far():
    # Survival 0.9, 0.72, 0.36.
    np.testing.assert_allclose(
        task_losses.predict(TASK, LOGITS[None]), [[0.1, 0.28, 0.64]], rtol=1e-5
    )


@pytest.mark.parametrize("labels", [(), ("10", "20"), ("10", "10", "20"), ("a", "b", "c")])
def test_intervals_must_be_given(labels):
    with pytest.raises(ValueError, match="increasing right ends"):
        task_losses.survival_edges(TaskSpec("death", "survival", dim=3, labels=labels))


LABEL = np.array([[1, 1], [2, 0], [3, 1], [3, 1], [4, 0]], float)
RISK = np.array([0.9, 0.1, 0.5, 0.2, 0.5])


def test_c_index_by_hand():
    # Time 1: four later, all below 0.9. Each event at 3: only the last is later; 0.5 ties with
    # it (half), 0.2 is below it. (4 + 0.5 + 0) / 6.
    known = np.ones((5, 2), bool)
    found = metrics.score(TASK, LABEL, known, np.repeat(RISK[:, None], 3, 1))["c_index"]
    np.testing.assert_allclose(found.value, 4.5 / 6)
    alike = np.ones((5, 2))
    none = metrics.score(TASK, alike, known, np.ones((5, 3)))["c_index"]
    assert np.isnan(none.value) and none.note == "no comparable pair"


@pytest.mark.parametrize(
    ("time", "event", "risk", "expected"),
    [
        # 1 beats all four later; the events at 2 have the censored one at 2 and the one at 3 later.
        ([1, 2, 2, 2, 3], [1, 1, 1, 0, 0], [5, 4, 1, 3, 2], 6 / 8),
        ([5, 5], [1, 0], [0.1, 0.9], 0.0),
        ([5, 5, 5, 5], [1, 0, 0, 0], [4, 3, 2, 1], 1.0),
    ],
)
def test_who_is_censored_at_the_time_of_an_event_outlived_it(time, event, risk, expected):
    label = np.stack([time, event], 1).astype(float)
    chance = np.repeat(np.array(risk, float)[:, None], 3, 1)
    found = metrics.score(TASK, label, np.ones(label.shape, bool), chance)["c_index"]
    np.testing.assert_allclose(found.value, expected)


def test_c_index_counts_the_pairs_of_the_definition():
    rng = np.random.default_rng(1)
    for _ in range(20):
        time, event = rng.integers(1, 6, 12), rng.integers(0, 2, 12)
        risk, good, pairs = rng.integers(0, 4, 12), 0.0, 0
        for i, j in np.ndindex(12, 12):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs, good = pairs + 1, good + (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
        label = np.stack([time, event], 1).astype(float)
        chance = np.repeat(risk[:, None] / 3, 3, 1)
        found = metrics.score(TASK, label, np.ones((12, 2), bool), chance)["c_index"]
        assert found.value == pytest.approx(good / pairs, nan_ok=True)


@pytest.mark.parametrize("ties", [False, True])
def test_both_c_indices_equal_scikit_survivals(ties):
    rng = np.random.default_rng(2)
    for _ in range(40):
        dead, left = rng.exponential(3, 80), rng.exponential(4, 80)
        if ties:  # whole days: events and censorings at one time, also at the last
            dead, left = np.ceil(dead), np.minimum(np.ceil(left), 6)
        time, event = np.minimum(dead, left), dead <= left
        chance = np.round(1 / (1 + dead) + 0.2 * rng.random(80), 1)
        outcome = np.array([*zip(event, time, strict=True)], [("event", bool), ("time", float)])
        label = np.stack([time, event], 1).astype(float)
        found = metrics.score(TASK, label, np.ones((80, 2), bool), np.repeat(chance[:, None], 3, 1))
        harrell = oracle.concordance_index_censored(event, time, chance)[0]
        np.testing.assert_allclose(found["c_index"].value, harrell, rtol=1e-12)
        # scikit-survival has no weight for events at the last time if others are censored then
        tau = time.max() if not event[time == time.max()].all() else None
        uno = oracle.concordance_index_ipcw(outcome, outcome, chance, tau=tau)[0]
        np.testing.assert_allclose(found["c_index_ipcw"].value, uno, rtol=1e-12)


def test_events_at_the_last_time_alone_have_no_weight():
    label = np.array([[5, 1], [5, 0], [5, 0]], float)
    found = metrics.score(
        TASK, label, np.ones((3, 2), bool), np.ones((3, 3)) * [[0.3], [0.2], [0.1]]
    )
    assert found["c_index"] == metrics.Value(1.0)
    assert np.isnan(found["c_index_ipcw"].value)
    assert found["c_index_ipcw"].note == "no comparable pair before the last time"


def test_events_weigh_by_the_chance_to_be_seen_by_hand():
    # Four at risk at 1 (event), three at 2 (censored: 2/3 stay), two at 3 (event, seen with 2/3):
    # pairs 1 x 3 and 9/4 x 1; the first is right in all, the second is wrong.
    label = np.array([[1, 1], [2, 0], [3, 1], [4, 0]], float)
    chance = np.repeat(np.array([0.9, 0.1, 0.2, 0.5])[:, None], 3, 1)
    found = metrics.score(TASK, label, np.ones((4, 2), bool), chance)
    np.testing.assert_allclose(found["c_index_ipcw"].value, 3 / (3 + 9 / 4))
    np.testing.assert_allclose(found["c_index"].value, 3 / 4)


def test_weighted_c_index_equals_repeated_rows():
    rng = np.random.default_rng(0)
    label = np.stack([rng.integers(1, 9, 40), rng.integers(0, 2, 40)], 1).astype(float)
    chance = rng.integers(0, 5, (40, 3)) / 5
    weight = rng.integers(0, 3, (40, 4)).astype(np.float32)
    mask = np.ones((40, 2), bool)
    found = metrics.under(TASK, label, mask, chance, weight)
    for b in range(4):
        rows = np.repeat(np.arange(40), weight[:, b].astype(int))
        again = metrics.score(TASK, label[rows], mask[rows], chance[rows])
        for name in ("c_index", "c_index_ipcw"):
            np.testing.assert_allclose(found[name][b], again[name].value, rtol=1e-6)
