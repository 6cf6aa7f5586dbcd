"""Verdicts keep their promises on grids whose truth is known."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from m4.eval import holm
from m4.lab import paired, verdict
from m4.specs import TaskSpec

ARMS, SEEDS, GRIDS, MARGIN = 8, 6, 1000, 0.5


def grids(effects_A, seed):
    """Differences [grids, arms, seeds] that share the reference's noise, as real ones do."""
    rng = np.random.default_rng(seed)
    arms = rng.standard_normal((GRIDS, ARMS, SEEDS)) + np.asarray(effects_A)[:, None]
    return arms - rng.standard_normal((GRIDS, 1, SEEDS))


def judged(effects_A, seed=0, margin=MARGIN):
    return verdict.compare(grids(effects_A, seed), margin=margin, lower_is_better=True)


def test_an_arm_that_is_no_better_is_rarely_called_so():
    found = judged(np.zeros(ARMS))
    assert (found.verdict == "better").any(1).mean() <= 0.05
    assert np.isin(found.verdict, ["better", "worse"]).any(1).mean() <= 0.06
    # known bad: without Holm's correction
    raw = ttest_rel(grids(np.zeros(ARMS), 0), 0 * grids(np.zeros(ARMS), 0), axis=-1).pvalue
    assert (raw <= 0.05).any(1).mean() > 0.12


def test_a_difference_of_the_margin_is_rarely_called_equivalent():
    found = judged(np.full(ARMS, 4.0), margin=4.0)
    assert found.within.any(1).mean() <= 0.05


def test_twice_the_smallest_difference_is_found():
    se = np.sqrt(2 / SEEDS)
    smallest = se * verdict.detectable(SEEDS - 1, verdict.ALPHA / ARMS)
    effects = np.zeros(ARMS)
    effects[:4] = 2 * smallest * np.array([-1, 1, -1, 1])
    found = judged(effects)
    right = np.array(["better", "worse"])[(effects[:4] > 0).astype(int)]
    assert (found.verdict[:, :4] == right).mean() >= 0.9
    assert np.median(found.smallest) == pytest.approx(smallest, rel=0.1)


def test_a_difference_can_be_sure_and_within_the_margin():
    found = verdict.compare([[0.10, 0.11, 0.09, 0.10, 0.10]], margin=0.5, lower_is_better=False)
    assert found.verdict[0] == "better" and found.within[0]


def test_the_same_arm_is_equivalent_and_nothing_is_divided_by_zero():
    found = verdict.compare(np.zeros((1, 5)), margin=1e-9, lower_is_better=True)
    assert (found.verdict[0], found.value[0], found.p[0], found.p_equal[0]) == (
        "equivalent",
        0,
        1,
        0,
    )


def test_as_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 7))
    found = verdict.compare([a - b], margin=1.0, lower_is_better=True)
    expected = ttest_rel(a, b)
    interval = expected.confidence_interval()
    assert found.p[0] == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.low[0], found.high[0]) == pytest.approx((interval.low, interval.high), rel=1e-12)
    above = ttest_rel(a - 1.0, b, alternative="less").pvalue
    below = ttest_rel(a + 1.0, b, alternative="greater").pvalue
    assert found.p_equal[0] == pytest.approx(max(above, below), rel=1e-12)
    assert holm.adjusted(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


def test_patients_widen_what_seeds_alone_would_say():
    args = [[0.1, 0.12, 0.09, 0.11]]
    alone = verdict.compare(args, margin=1, lower_is_better=False)
    both = verdict.compare(
        args, margin=1, lower_is_better=False, patients_sd_A=0.2, num_patients=100
    )
    assert alone.verdict[0] == "better" and both.verdict[0] != "better"
    assert both.high[0] - both.low[0] > 2 * 1.9 * 0.2


@pytest.mark.parametrize("arms", [1, 8, 20])
def test_two_seeds_are_enough_for_an_answer(arms):
    """At one degree of freedom scipy's noncentral t is NaN in places."""
    difference = np.random.default_rng(0).standard_normal((arms, 2))
    found = verdict.compare(difference, margin=0.1, lower_is_better=True)
    assert np.isfinite(found.smallest).all()
    assert (found.smallest > abs(found.high - found.low) / 2).all()


@pytest.mark.parametrize(("seeds", "margin"), [(1, 0.1), (3, 0.0), (3, float("nan"))])
def test_what_cannot_be_judged_is_refused(seeds, margin):
    with pytest.raises(ValueError, match="at least two"):
        verdict.compare(np.zeros((1, seeds)), margin=margin, lower_is_better=True)


def test_arms_that_are_not_there_yet_count_for_holm():
    """The first of eight arms that comes in is not judged as if it were the only one."""
    difference = grids(np.zeros(ARMS), 0)[:, :1]
    alone = verdict.compare(difference, margin=MARGIN, lower_is_better=True)
    early = verdict.compare(difference, margin=MARGIN, lower_is_better=True, planned=ARMS)
    np.testing.assert_allclose(early.p, np.minimum(ARMS * alone.p, 1))
    np.testing.assert_allclose(early.p_equal, np.minimum(ARMS * alone.p_equal, 1))
    assert (early.smallest > alone.smallest).all()


def test_a_spread_that_is_unknown_makes_nothing_sure():
    found = verdict.compare(
        [[0.5, 0.4, 0.6], [0.01, -0.02, 0.0]],
        margin=0.1,
        lower_is_better=True,
        patients_sd_A=np.full(2, np.nan),
        num_patients=10,
    )
    assert list(found.verdict) == ["open", "open"] and (found.p == 1).all()
    assert (found.p_equal == 1).all()


@pytest.mark.parametrize(("deaths", "known"), [(1, False), (6, True)])
def test_a_metric_that_many_draws_lack_has_no_spread(deaths, known):
    """One death of twelve patients: a third of the draws have none, and no AUROC."""
    row, label = np.arange(12), (np.arange(12) < deaths).astype(float)[:, None]
    rng = np.random.default_rng(0)
    run = [
        paired.Kept(row, row, rng.random((12, 1)), label, np.ones((12, 1), bool)) for _ in range(2)
    ]
    arms = {"a": run[:1], "b": run[1:]}
    spread, patients = paired.patients_sd(arms, "a", TaskSpec("death", "binary"), "auroc")
    assert patients == 12 and np.isfinite(spread["b"]) == known
