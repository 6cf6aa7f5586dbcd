import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score
from threadpoolctl import threadpool_limits

from m4.config import rules
from m4.eval import baselines
from m4.eval.baselines import Table
from m4.specs import DataSpec, ModalitySpec, TaskSpec


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


TABLE = (ModalitySpec("a", "table", (2,)), ModalitySpec("b", "table", (2,)))
COLUMNS = ("a/0", "a/1", "b/0", "b/1")
KNOWING = [name for name in baselines.NAMES if name != "presence"]  # of values


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
    references = baselines.fit_predict(spec, Table(x, COLUMNS), labels(signal), x_test)
    assert tuple(references) == baselines.NAMES
    for out in (references[name] for name in KNOWING):
        assert roc_auc_score(truth["ihm"], out["ihm"][:, 0]) > 0.8
        assert all(roc_auc_score(truth["phe"][:, c], out["phe"][:, c]) > 0.8 for c in range(2))
        assert roc_auc_score(truth["unit"], out["unit"], multi_class="ovr") > 0.75
        np.testing.assert_allclose(out["unit"].sum(1), 1.0)
        assert r2_score(np.log1p(truth["los"]), np.log1p(out["los"][:, 0])) > 0.2


def test_masked_labels_do_not_matter():
    spec = DataSpec(TABLE, (TaskSpec("ihm", "binary"),))
    x, signal = make_data(rows=120)
    y, mask = (signal > 0).astype(float), np.arange(120) < 80
    table = Table(x, COLUMNS)
    clean = baselines.fit_predict(spec, table, {"ihm": (y, mask)}, x[:9])
    y[80:] = np.nan
    dirty = baselines.fit_predict(spec, table, {"ihm": (y, mask)}, x[:9])
    for name in baselines.NAMES:
        assert (clean[name]["ihm"] == dirty[name]["ihm"]).all()


def test_what_cannot_be_fitted_is_constant_or_left_out():
    spec = DataSpec(TABLE, (TaskSpec("never", "binary"), TaskSpec("once", "multiclass", dim=3)))
    x, _ = make_data(rows=40)
    x[:, 3] = np.nan  # a feature that was never measured
    labels = {"never": (np.zeros(40), np.ones(40)), "once": (np.full(40, 2), np.ones(40))}
    for out in baselines.fit_predict(spec, Table(x, COLUMNS), labels, x[:5]).values():
        assert (out["never"] == 0).all() and (out["once"] == [0, 0, 1]).all()
    none = baselines.fit_predict(spec, x, {"never": (np.zeros(40), np.zeros(40))}, x[:5])
    assert none == {name: {} for name in baselines.NAMES if name != "late"}  # nothing says of what


def test_outlying_feature_gives_a_finite_regression():
    spec = DataSpec(TABLE, (TaskSpec("los", "regression", transform="log1p"),))
    x, signal = make_data(rows=60)
    y = np.exp(signal)
    outlier = np.full((1, 4), 1e9)
    out = baselines.fit_predict(spec, Table(x, COLUMNS), {"los": (y, np.ones(60))}, outlier)
    for name in baselines.NAMES:
        assert out[name]["los"][0, 0] <= y.max() * (1 + 1e-6)


def test_a_feature_that_no_training_row_has_says_nothing():
    # The binary task's two known rows lack feature 1, which other rows have.
    spec = DataSpec(TABLE, (TaskSpec("ihm", "binary"), TaskSpec("los", "regression")))
    x = np.array([[0.0, np.nan], [1.0, np.nan]] * 60 + [[0.5, 3.0]])
    mask = np.array([1.0] * 120 + [0.0])
    labels = {"ihm": (x[:, 0] > 0.5, mask), "los": (x[:, 0], mask)}
    asked, table = np.array([[1.0, 9.0], [1.0, np.nan]]), Table(x, ("a/0", "b/0"))
    for name, out in baselines.fit_predict(spec, table, labels, asked).items():
        for task in ("ihm", "los"):
            assert out[task][0, 0] == out[task][1, 0]
            assert name == "presence" or out[task][0, 0] > 0.7, name
    nothing = np.full((121, 2), np.nan)
    for out in baselines.fit_predict(
        spec, table._replace(x_NF=nothing), labels, nothing[:1]
    ).values():
        np.testing.assert_allclose([out["ihm"], out["los"]], 0.5, atol=1e-3)


def test_what_is_asked_never_reaches_a_fit():
    spec = DataSpec(TABLE, (TaskSpec("ihm", "binary"), TaskSpec("los", "regression")))
    x, signal = make_data(rows=150)
    labels = {"ihm": (signal > 0, np.ones(150)), "los": (np.exp(signal), np.ones(150))}
    table = Table(x, COLUMNS)
    alone = baselines.fit_predict(spec, table, labels, x[:1])
    beside = np.concatenate([x[:1], np.full((50, 4), 1e6), np.full((9, 4), np.nan)])
    among = baselines.fit_predict(spec, table, labels, beside)
    for name in baselines.NAMES:  # one row's prediction does not depend on who is asked with it
        for task in labels:
            np.testing.assert_allclose(among[name][task][:1], alone[name][task], err_msg=name)


def test_presence_knows_no_value_and_late_fusion_no_product_of_modalities():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    spec = DataSpec(TABLE, (TaskSpec("t", "binary"),))
    asked = rng.normal(size=(600, 4))

    def auroc(label, *, gone=lambda rows: rows[:, 0] > 99, names=("boosting", "late", "presence")):
        both = [rows.copy() for rows in (x, asked)]
        for rows in both:
            rows[gone(rows), 0] = np.nan
        y, truth = (label(rows) for rows in (x, asked))
        one = {"t": (y, np.ones(600))}
        out = baselines.fit_predict(spec, Table(both[0], COLUMNS), one, both[1], names=names)
        return {name: roc_auc_score(truth, found["t"][:, 0]) for name, found in out.items()}

    found = auroc(lambda rows: rows[:, 0] + rows[:, 2] > 0)
    assert found["late"] > 0.9 and found["boosting"] > 0.9 and found["presence"] == 0.5
    found = auroc(lambda rows: rows[:, 0] * rows[:, 2] > 0)  # one from each modality
    assert found["boosting"] > 0.8 and found["late"] < 0.6
    found = auroc(lambda rows: rows[:, 1] > 0, gone=lambda rows: rows[:, 1] > 0, names=["presence"])
    assert found["presence"] == 1.0


def test_late_fusion_is_stacked_out_of_fold_of_patients():
    # A modality of pure noise and one that names the patient: in sample both look perfect.
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(120), 4)
    y = rng.integers(0, 2, 120)[owner]
    x = np.stack([owner, rng.normal(size=480), y + 0.8 * rng.normal(size=480), owner], axis=1)
    spec = DataSpec(TABLE, (TaskSpec("t", "binary"),))
    new = np.stack([rng.integers(0, 120, 400), rng.normal(size=400)] * 2, axis=1).astype(float)
    truth = rng.integers(0, 2, 400)
    new[:, 2] = truth + 0.8 * rng.normal(size=400)
    one = {"t": (y, np.ones(480))}
    columns = ("a/0", "a/1", "b/0", "a/2")

    def auroc(patient_N):
        table = Table(x, columns, patient_N)
        out = baselines.fit_predict(spec, table, one, new, names=["late"])
        return roc_auc_score(truth, out["late"]["t"][:, 0])

    assert auroc(owner) > auroc(None) + 0.02  # rows of one patient in both parts mislead it


def test_which_rows_are_fitted():
    one = DataSpec(TABLE, (TaskSpec("ihm", "binary"), TaskSpec("when", "survival", dim=40)))
    many = DataSpec(TABLE, (TaskSpec("phe", "multilabel", dim=25),))
    assert baselines.NAMES == rules.BASELINES
    assert baselines.chosen(True, one) == (baselines.NAMES, ())
    assert baselines.chosen(False, many) == ((), ())
    names, rare = baselines.chosen(True, many)
    assert names == ("boosting", "linear", "presence") and rare == ("default boosting", "late")
    for asked in ("late,boosting", ["late", "boosting"]):
        assert baselines.chosen(asked, many) == (("boosting", "late"), ())
    rule = rules.FIELDS["eval.baselines"]
    for right in (True, "boosting", "default boosting,late", ("linear",)):
        assert rule.problem(right) is None
    for wrong in ("boost", "", "boosting,,late", (), ("linear", 3), 1):
        assert "default boosting" in (rule.problem(wrong) or "")
