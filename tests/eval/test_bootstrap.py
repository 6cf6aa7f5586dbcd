import numpy as np
import pytest
from scipy.stats import norm

from m4.eval import bootstrap
from m4.eval.metrics import Value
from m4.specs import TaskSpec

TASK = TaskSpec("t", "binary")


def test_rows_of_a_patient_move_together():
    draws = bootstrap.resample(np.array([7, 7, 3, 9, 3]), draws=50)
    out = draws.map(lambda w: {str(i): row for i, row in enumerate(w)}, np.ones(5, bool))
    assert (out["0"] == out["1"]).all() and (out["2"] == out["4"]).all()
    assert (out["0"] + out["2"] + out["3"] == 3).all()  # three patients drawn, always
    assert (out["0"] != out["2"]).any()


def test_chunks_do_not_change_a_draw(monkeypatch):
    rng = np.random.default_rng(0)
    y, p = (rng.random((80, 1)) < 0.3).astype(float), rng.random((80, 1))
    draws = bootstrap.resample(np.arange(80) // 2, draws=160)
    whole = bootstrap.score(TASK, y, y >= 0, p, draws)
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 80 * 70)
    parts = bootstrap.score(TASK, y, y >= 0, p, draws)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-12)


def test_patient_interval_is_wider_than_the_row_interval():
    # every patient has ten identical rows: the information is that of 30 patients, not 300 rows
    rng = np.random.default_rng(1)
    y = np.repeat((rng.random(30) < 0.4).astype(float), 10)[:, None]
    p = np.repeat(np.clip(0.3 * y[::10] + rng.random((30, 1)), 0, 1), 10, axis=0)

    def width(patient):
        drawn = bootstrap.score(TASK, y, y >= 0, p, bootstrap.resample(patient, draws=400))
        low, high = np.percentile(drawn["auroc"], [2.5, 97.5])
        return high - low

    ratio = width(np.arange(300) // 10) / width(np.arange(300))
    assert ratio == pytest.approx(np.sqrt(10), rel=0.25)


def test_interval_covers_the_truth_as_often_as_it_says():
    # mean absolute error of N(0, 1) noise is sqrt(2 / pi); 95 % intervals, 100 samples of 100
    task, hits = TaskSpec("t", "regression"), 0
    for seed in range(100):
        y = np.random.default_rng(seed).normal(size=(100, 1))
        draws = bootstrap.resample(np.arange(100), draws=200, seed=seed)
        drawn = bootstrap.score(task, y, np.ones((100, 1), bool), np.zeros((100, 1)), draws)
        low, high = np.percentile(drawn["mae"], [2.5, 97.5])
        hits += low <= np.sqrt(2 / np.pi) <= high
    assert 87 <= hits <= 99  # binomial(100, .95) within about 3.5 standard deviations


def test_interval_states_what_is_undefined():
    drawn = np.r_[np.linspace(0, 1, 90), np.full(10, np.nan)]
    kept = bootstrap.interval(Value(0.5), drawn)
    assert kept["low"] == pytest.approx(0.025) and kept["note"].startswith("undefined in 10.0%")
    lost = bootstrap.interval(Value(0.5), np.r_[drawn[:70], np.full(30, np.nan)])
    assert lost["low"] is None and lost["value"] == 0.5 and "no interval" in lost["note"]
    for own in (drawn, np.r_[drawn[:63], np.full(37, np.nan)]):
        said = bootstrap.interval(Value(0.5), own, units=1, smallest=10)  # one event stays unknown
        assert said["note"] == "no interval: it rests on fewer than 10 patients"
    said = bootstrap.interval(Value(0.5), drawn, units=2, smallest=10)["note"]
    assert said == "undefined in some of the draws, left out"
    never = bootstrap.interval(Value(np.nan, "every label is 0"), np.full(5, np.nan))
    assert never == {"value": None, "low": None, "high": None, "note": "every label is 0"}


def test_the_interval_moves_against_the_bias_of_the_draws():
    # Draws with normal quantiles, by one deviation too large: their middle is at 1, the value at 0.
    draws = norm.ppf((np.arange(200_000) + 0.5) / 200_000) + 1
    found = bootstrap.interval(Value(0.0), draws)
    np.testing.assert_allclose([found["low"], found["high"]], [-2.96, 0.96], atol=0.03)
    # draws that are the value but for rounding are no bias
    ties = np.r_[np.full(600, 0.3), np.full(200, 0.2), np.full(200, 0.4)]
    exact, rounded = (bootstrap.interval(Value(v), ties) for v in (0.3, 0.1 + 0.2))
    assert exact == rounded == {"value": 0.3, "low": 0.2, "high": 0.4}


def test_same_seed_same_draws():
    a, b, c = (bootstrap.resample(np.arange(20), draws=5, seed=s).count_PB for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()
