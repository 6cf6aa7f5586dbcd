"""The metrics equal scikit-learn's: of the rows themselves, and of resampled ones under weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from m4.eval import bootstrap, metrics
from m4.eval.calibration import ece
from m4.specs import TaskSpec
from tests.eval import by_sklearn

KINDS = {"binary": 1, "multilabel": 3, "multiclass": 3, "regression": 2, "segmentation": 2}


def case(kind, rng, rows, ties):
    dim = KINDS[kind]
    task = TaskSpec("t", kind, dim=dim)
    p = rng.random((rows, dim))
    y = (rng.random((rows, dim)) < 0.4).astype(float)
    if ties:
        p = np.round(p, 1)
    if kind == "multiclass":
        y, p = rng.integers(0, dim, (rows, 1)).astype(float), (p + 0.1) / (p + 0.1).sum(1)[:, None]
    if kind == "regression":
        y = np.round(rng.normal(size=(rows, dim)), 1 if ties else 8)
    mask = rng.random(y.shape) < 0.85
    if kind != "multilabel":
        mask = np.broadcast_to(mask[:, :1], y.shape)
    return task, np.where(mask, y, 0.0), mask, p


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 10_000),
    rows=st.integers(3, 40),
    ties=st.booleans(),
)
def test_equals_sklearn_on_the_resampled_rows(kind, seed, rows, ties):
    rng = np.random.default_rng(seed)
    task, y, mask, p = case(kind, rng, rows, ties)
    cut = np.full(p.shape[1], 0.4)
    draws = 4
    w = np.stack([np.bincount(rng.integers(0, rows, rows), minlength=rows) for _ in range(draws)])
    args = task, y, mask, p, w.T.astype(np.float32)
    fast = metrics.under(*args, threshold=cut)
    for name in fast:  # alone it is the same
        (alone,) = metrics.under(*args, threshold=cut, names=[name, "unknown"]).items()
        assert alone[0] == name
        np.testing.assert_array_equal(alone[1], fast[name])
    for b in range(draws):
        rows_b = np.repeat(np.arange(rows), w[b])
        slow = by_sklearn.score(task, y[rows_b], mask[rows_b], p[rows_b], threshold=cut)
        assert set(slow) == set(fast)
        for name, value in slow.items():
            lost = defined(name, kind, y, mask, p) - defined(name, kind, y, mask, p, rows_b)
            expected = np.nan if lost else value.value
            if name != "ece":  # its bins are those of the original sample
                np.testing.assert_allclose(
                    fast[name][b], expected, rtol=1e-9, atol=1e-12, err_msg=name
                )


def defined(name, kind, y, mask, p, rows=slice(None)):
    """The labels or classes that a macro metric is a mean of."""
    y, mask, p = y[rows], mask[rows], p[rows]
    if not name.endswith("_macro"):
        return set()
    if kind == "multiclass":
        known = mask[:, 0]
        real, said = {*y[known, 0].astype(int)}, {*p[known].argmax(1)}
        return real | said if name == "f1_macro" else real if len(real) > 1 else set()
    own = [{*y[mask[:, c], c]} for c in range(y.shape[1])]
    return {c for c, has in enumerate(own) if 1 in has and (0 in has or "auroc" not in name)}


def test_a_draw_that_loses_a_label_is_undefined_and_the_interval_says_so():
    rng = np.random.default_rng(0)
    y = np.stack([rng.random(300) < 0.3, np.arange(300) < 2], 1).astype(float)
    p, task = rng.random((300, 2)), TaskSpec("t", "multilabel", dim=2)
    draws = bootstrap.resample(np.arange(300), draws=1000)
    drawn = bootstrap.score(task, y, y >= 0, p, draws)["auroc_macro"]
    # neither of the two positives of label 1 is drawn with chance (1 - 2 / 300)^300 = 0.134
    assert np.isnan(drawn).mean() == pytest.approx(0.134, abs=0.04)
    assert np.isfinite(bootstrap.score(task, y, y >= 0, p, draws)["auroc_micro"]).all()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    ties=st.booleans(),
    few=st.booleans(),
)
def test_values_and_reasons_equal_sklearns(kind, seed, rows, ties, few):
    rng = np.random.default_rng(seed)
    task, y, mask, p = case(kind, rng, rows, ties)
    y = np.zeros_like(y) if few else y  # one class, constant labels
    ours = metrics.score(task, y, mask, p, threshold=np.full(p.shape[1], 0.4))
    theirs = by_sklearn.score(task, y, mask, p, threshold=np.full(p.shape[1], 0.4))
    assert {n: v.note for n, v in ours.items()} == {n: v.note for n, v in theirs.items()}
    for name, value in theirs.items():
        np.testing.assert_allclose(
            ours[name].value, value.value, rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_ece_weights_the_original_bins():
    y, p = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    task, one = TaskSpec("t", "binary"), np.ones((4, 1), bool)
    out = metrics.under(task, y[:, None], one, p[:, None], np.array([[1.0, 2], [1, 0]] * 2))
    assert out["ece"][0] == pytest.approx(ece(y, p))
    # each row is its own bin; weights 2 0 2 0: (2 * .1 + 2 * .6) / 4
    assert out["ece"][1] == pytest.approx(0.35)


def test_draw_without_a_class_is_undefined():
    y, p = np.array([[0.0], [0], [1]]), np.array([[0.2], [0.4], [0.3]])
    w = np.array([[1.0, 2, 0], [1, 1, 0], [1, 0, 3]])
    out = metrics.under(TaskSpec("t", "binary"), y, np.ones((3, 1), bool), p, w)
    assert out["auroc"][0] == 0.5
    assert np.isnan(out["auroc"][1:]).all()
    assert np.isnan(out["auprc"]).tolist() == [False, True, False]
    assert np.isfinite(out["brier"]).all()


def by_folds(y, mask, p, fold, score):
    """The mean over labels of the means of their folds with both outcomes, by events."""
    labels = []
    for c in range(p.shape[1]):
        values, events = [], []
        for k in np.unique(fold):
            own = (fold == k) & mask[:, c]
            if len({*y[own, c]}) == 2:
                values.append(score(y[own, c], p[own, c]))
                events.append(y[own, c].sum())
        labels += [np.average(values, weights=events)] if values else []
    return np.mean(labels)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_macro_metrics_over_folds_are_means_of_each_labels_own_folds(kind):
    rng, task = np.random.default_rng(0), TaskSpec("t", kind, dim=3)
    fold, p = np.arange(90) % 3, rng.dirichlet(np.ones(3), 90)
    y = (rng.random((90, 3)) < [0.4, 0.2, 0.1]).astype(float)
    y[:, 2] *= fold == 0  # two folds have none of the last label; known bad: its 0 folds counted
    if kind == "multiclass":
        y = np.where(y[:, 2:], 2.0, rng.integers(0, 2, (90, 1)))
    mask = rng.random(y.shape) < 0.9
    hot, known = y, mask
    if kind == "multiclass":
        hot, known = (y == np.arange(3)).astype(float), mask.repeat(3, axis=1)
    found = metrics.score(task, y, mask, p, fold_N=fold)
    expected = by_folds(hot, known, p, fold, sk.roc_auc_score)
    assert found["auroc_macro"].value == pytest.approx(expected, abs=1e-12)
    assert found["auroc_macro"].note == "2 of 3 folds undefined, left out"
    if kind == "multilabel":
        expected = by_folds(hot, known, p, fold, sk.average_precision_score)
        assert found["auprc_macro"].value == pytest.approx(expected, abs=1e-12)
    # a draw in which a fold loses its events goes on with the other folds
    weight = np.stack([np.ones(90), (y[:, 0] == 0) | (fold != 1)], axis=1).astype(np.float32)
    drawn = metrics.under(task, y, mask, p, weight, fold_N=fold)["auroc_macro"]
    assert np.isfinite(drawn).all() and drawn[0] == pytest.approx(found["auroc_macro"].value)
    # nor is there in draws of no row at all
    nobody = metrics.under(task, y[:0], mask[:0], p[:0], weight[:0], fold_N=fold[:0])
    assert np.isnan(nobody["auroc_macro"]).all()  # known bad: IndexError
    # without any event there is nothing to average, which is no error
    none = metrics.score(task, y * 0, mask, p, fold_N=fold)["auroc_macro"]
    assert np.isnan(none.value) and none.note


def test_a_survival_fold_without_events_is_left_out():
    rng, task = np.random.default_rng(0), TaskSpec("t", "survival", dim=2, labels=("1", "2"))
    fold, p = np.arange(60) % 2, rng.random((60, 2))
    y = np.stack([rng.exponential(size=60), (rng.random(60) < 0.6) * (fold == 0)], axis=1)
    known = np.ones(y.shape, bool)
    found = metrics.score(task, y, known, p, fold_N=fold)
    own = metrics.score(task, y[fold == 0], known[fold == 0], p[fold == 0])
    for name in ("c_index", "c_index_ipcw"):
        assert found[name].value == own[name].value
        assert found[name].note == "1 of 2 folds undefined, left out"
