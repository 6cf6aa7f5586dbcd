import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score
from threadpoolctl import threadpool_limits

from m4.eval import baselines
from m4.specs import DataSpec, ModalitySpec, TaskSpec


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


TABLE = (ModalitySpec("a", "table", (2,)),)


def make_data(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    signal = x[:, 0] + 0.5 * x[:, 1]
    x[rng.random(x.shape) < 0.2] = np.nan
    return x, signal + 0.3 * rng.normal(size=rows)


def test_references_learn_every_kind():
    spec = DataSpec(
        TABLE,
        (
            TaskSpec("ihm", "binary"),
            TaskSpec("phe", "multilabel", dim=2),
            TaskSpec("unit", "multiclass", dim=3),
            TaskSpec("los", "regression", transform="log1p"),
        ),
    )

    def labels(signal):
        return {
            "ihm": (signal > 0, np.ones(len(signal))),
            "phe": (np.stack([signal > 0.5, signal < 0], 1), np.ones((len(signal), 2))),
            "unit": (np.digitize(signal, [-0.5, 0.5]), np.ones(len(signal))),
            "los": (np.exp(signal), np.ones(len(signal))),
        }

    x, signal = make_data()
    x_test, signal_test = make_data(seed=1)
    truth = {task: np.asarray(y) for task, (y, _) in labels(signal_test).items()}
    references = baselines.fit_predict(spec, x, labels(signal), x_test)
    assert set(references) == {"boosting", "linear"}
    for out in references.values():
        assert roc_auc_score(truth["ihm"], out["ihm"][:, 0]) > 0.8
        assert all(roc_auc_score(truth["phe"][:, c], out["phe"][:, c]) > 0.8 for c in range(2))
        assert roc_auc_score(truth["unit"], out["unit"], multi_class="ovr") > 0.75
        np.testing.assert_allclose(out["unit"].sum(1), 1.0)
        assert r2_score(np.log1p(truth["los"]), np.log1p(out["los"][:, 0])) > 0.2


def test_masked_labels_do_not_matter():
    spec = DataSpec(TABLE, (TaskSpec("ihm", "binary"),))
    x, signal = make_data(rows=120)
    y, mask = (signal > 0).astype(float), np.arange(120) < 80
    clean = baselines.fit_predict(spec, x, {"ihm": (y, mask)}, x[:9])
    y[80:] = np.nan
    dirty = baselines.fit_predict(spec, x, {"ihm": (y, mask)}, x[:9])
    for name in baselines.NAMES:
        assert (clean[name]["ihm"] == dirty[name]["ihm"]).all()


def test_what_cannot_be_fitted_is_constant_or_left_out():
    spec = DataSpec(TABLE, (TaskSpec("never", "binary"), TaskSpec("once", "multiclass", dim=3)))
    x, _ = make_data(rows=40)
    x[:, 3] = np.nan  # a feature that was never measured
    labels = {"never": (np.zeros(40), np.ones(40)), "once": (np.full(40, 2), np.ones(40))}
    out = baselines.fit_predict(spec, x, labels, x[:5])["linear"]
    assert (out["never"] == 0).all() and (out["once"] == [0, 0, 1]).all()
    none = baselines.fit_predict(spec, x, {"never": (np.zeros(40), np.zeros(40))}, x[:5])
    assert none == {"boosting": {}, "linear": {}}


def test_outlying_feature_gives_a_finite_regression():
    spec = DataSpec(TABLE, (TaskSpec("los", "regression", transform="log1p"),))
    x, signal = make_data(rows=60)
    y = np.exp(signal)
    outlier = np.full((1, 4), 1e9)
    out = baselines.fit_predict(spec, x, {"los": (y, np.ones(60))}, outlier)
    for name in baselines.NAMES:
        assert out[name]["los"][0, 0] <= y.max() * (1 + 1e-6)


def test_a_feature_that_no_training_row_has_says_nothing():
    # The binary task's two known rows lack feature 1, which other rows have.
    spec = DataSpec(TABLE, (TaskSpec("ihm", "binary"), TaskSpec("los", "regression")))
    x = np.array([[0.0, np.nan], [1.0, np.nan]] * 20 + [[0.5, 3.0]])
    mask = np.array([1.0] * 40 + [0.0])
    labels = {"ihm": (x[:, 0] > 0.5, mask), "los": (x[:, 0], mask)}
    for out in baselines.fit_predict(spec, x, labels, [[1.0, 9.0], [1.0, np.nan]]).values():
        for task in ("ihm", "los"):
            assert out[task][0, 0] == out[task][1, 0] > 0.7
    nothing = np.full((41, 2), np.nan)
    for out in baselines.fit_predict(spec, nothing, labels, nothing[:1]).values():
        np.testing.assert_allclose([out["ihm"], out["los"]], 0.5, atol=1e-3)
