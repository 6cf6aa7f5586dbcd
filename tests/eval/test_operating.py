"""Curves, operating points and recalibration against scikit-learn, plain loops and simulation."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve, roc_curve

from m4.eval import bootstrap, metrics, operating, recalibration, table_one
from m4.eval.table_one import Values

rng = np.random.default_rng


@pytest.fixture(scope="module")
def found(fabricate):
    spec, _, predictions = fabricate(rows=600)
    draws = bootstrap.resample(predictions.patient, draws=200)
    cuts = operating.choose(predictions, spec)
    return spec, predictions, operating.describe(predictions, spec, draws, cuts=cuts)


def sides(spec, predictions):
    (question,) = operating.questions(predictions, spec, spec.task("ihm"))
    return question


def test_curves_are_those_of_scikit_learn(found):
    spec, predictions, (curves, _) = found
    question = sides(spec, predictions)
    fpr, tpr, _ = roc_curve(question.y_n, question.p_n, drop_intermediate=False)
    known = {(f"{x:.6g}", f"{y:.6g}") for x, y in zip(fpr, tpr, strict=True)}
    roc = curves["ihm"][0]["roc"]
    assert len(roc) > 20 and {(f"{p['x']:.6g}", f"{p['y']:.6g}") for p in roc} <= known
    precision, recall, _ = precision_recall_curve(question.y_n, question.p_n)
    known = {(f"{x:.6g}", f"{y:.6g}") for x, y in zip(recall, precision, strict=True)}
    assert {(f"{p['x']:.6g}", f"{p['y']:.6g}") for p in curves["ihm"][0]["pr"]} <= known
    for point in (*roc, *curves["ihm"][0]["pr"]):
        assert point["low"] <= point["y"] + 0.05 and point["high"] >= point["y"] - 0.05


def test_enough_patients_lie_between_the_points(found):
    spec, predictions, _ = found
    question = sides(spec, predictions)
    edges = [-np.inf, *operating._vertices(question, 10), np.inf]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (question.p_n >= low) & (question.p_n < high)
        assert len(np.unique(question.patient_n[inside])) >= 10


def test_points_and_benefit_are_counted(found):
    spec, predictions, (curves, points) = found
    question = sides(spec, predictions)
    y, p, n = question.y_n, question.p_n, len(question.y_n)
    rows = points["ihm"][0]["points"]
    assert [row["name"] for row in rows if row["chosen"] == "fixed"][0] == "risk 5%"
    exact = operating.choose(predictions, spec)["ihm"]  # the document has six digits of them
    for row in rows:
        flag = p >= (exact[row["name"]][0] if row["chosen"] == "validation" else row["cut"])
        if flag.sum() < 15 or (~flag).sum() < 15:
            continue
        assert row["sensitivity"]["value"] == pytest.approx((flag & y).sum() / y.sum(), rel=1e-5)
        assert row["specificity"]["value"] == pytest.approx(
            (~flag & ~y).sum() / (~y).sum(), rel=1e-5
        )
        assert row["ppv"]["value"] == pytest.approx((flag & y).sum() / flag.sum(), rel=1e-5)
        assert row["npv"]["value"] == pytest.approx((~flag & ~y).sum() / (~flag).sum(), rel=1e-5)
        assert row["alerts"]["value"] == pytest.approx(100 * flag.mean(), rel=1e-5)
        smaller = min((flag & y).sum() / y.sum(), (flag & y).sum() / flag.sum())
        assert row["min_se_ppv"]["value"] == pytest.approx(smaller, rel=1e-5)
        assert row["min_se_ppv"]["low"] < smaller < row["min_se_ppv"]["high"]
    for row in curves["ihm"][0]["decision"]:
        flag, odds = p >= row["risk"], row["risk"] / (1 - row["risk"])
        mine = ((flag & y).sum() - (flag & ~y).sum() * odds) / n
        all_ = (y.sum() - (~y).sum() * odds) / n
        assert row["benefit"]["value"] == pytest.approx(mine, abs=1e-5)
        assert row["gain"]["value"] == pytest.approx(mine - max(all_, 0), abs=1e-5)


def test_cuts_chosen_in_validation_reach_what_they_name(found):
    spec, predictions, (_, points) = found
    for row in points["ihm"][0]["points"]:
        if row["name"] == operating.EVEN:  # chosen on the very rows: what the metric says
            best = metrics.score(
                spec.task("ihm"),
                predictions.label["ihm"],
                predictions.scored(spec, spec.task("ihm"), predictions.full()),
                predictions.prediction["ihm"][predictions.full()],
            )["min_se_ppv"]
            assert row["min_se_ppv"]["value"] == pytest.approx(best.value, rel=1e-5)
        elif row["chosen"] == "validation":  # here the same rows
            what, share = row["name"].split()
            assert row[what]["value"] >= float(share.rstrip("%")) / 100 - 1e-9
            assert row[what]["value"] < float(share.rstrip("%")) / 100 + 0.03


def test_a_share_of_none_or_all_is_not_certain():
    patients = np.arange(60)
    y, p = patients < 30, np.where(patients < 30, 0.9, 0.1)
    question = operating.Question(0, "t", y, p, patients, patients)
    draws = bootstrap.resample(patients, draws=200)
    _, rows = operating._question(question, draws, {}, 10)
    point = next(row for row in rows["points"] if row["name"] == "risk 50%")
    assert point["sensitivity"]["value"] == 1.0 and point["sensitivity"]["high"] == 1.0
    assert 0.85 < point["sensitivity"]["low"] < 0.93  # Wilson's 30 of 30: 0.886


def test_small_sides_of_a_cut_are_not_shown(fabricate):
    spec, _, predictions = fabricate(rows=120)
    draws = bootstrap.resample(predictions.patient, draws=50)
    question = sides(spec, predictions)
    highest = np.sort(question.p_n)[-4]  # four rows at or above it
    curves, points = operating.describe(
        predictions, spec, draws, cuts={"ihm": {"rare": np.array([highest])}}
    )
    rare = next(row for row in points["ihm"][0]["points"] if row["name"] == "rare")
    assert rare["sensitivity"]["value"] is None and "too few" in rare["alerts"]["note"]
    bands = [band["share"] for band in curves["ihm"][0]["risks"]]
    assert all(share is None or share == 0 or share * len(question.y_n) >= 10 for share in bands)
    assert operating.describe(predictions, spec, draws, min_patients=70)[1] == {}
    json.dumps([curves, points], allow_nan=False)


def test_slope_is_that_of_logistic_regression():
    p = rng(0).uniform(0.02, 0.98, 400)
    y = rng(1).random(400) < p**1.5
    logit = np.log(p / (1 - p))
    own = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, None], y)
    found = recalibration.logistic(y, p, np.arange(400))
    assert found["slope"]["value"] == pytest.approx(own.coef_[0, 0], rel=1e-4)
    twice = recalibration.logistic(np.repeat(y, 2), np.repeat(p, 2), np.repeat(np.arange(400), 2))
    for name in ("low", "value", "high"):  # rows that only repeat a patient tell nothing
        assert twice["slope"][name] == pytest.approx(found["slope"][name], rel=1e-3)
        assert twice["intercept"][name] == pytest.approx(found["intercept"][name], rel=1e-3)


@pytest.mark.parametrize(("patients", "rows"), [(150, 1), (150, 3)])
def test_intervals_of_slope_and_intercept_cover(patients, rows):
    covered, sets = np.zeros(2), 300
    for seed in range(sets):
        draw = rng(seed)
        logit = np.repeat(draw.normal(-0.5, 1.2, patients), rows)
        y = np.repeat(draw.random(patients), rows) < 1 / (1 + np.exp(-logit))
        found = recalibration.logistic(
            y, 1 / (1 + np.exp(-logit)), np.repeat(np.arange(patients), rows)
        )
        covered += [found["slope"]["low"] <= 1 <= found["slope"]["high"],
                    found["intercept"]["low"] <= 0 <= found["intercept"]["high"]]  # fmt: skip
    assert (covered / sets > 0.92).all() and (covered / sets < 0.985).all(), covered / sets


def test_what_cannot_be_fitted_says_so():
    y = np.arange(40) < 20
    assert recalibration.logistic(y, np.where(y, 0.9, 0.1), np.arange(40))["slope"]["value"] is None
    assert recalibration.logistic(y * 0, np.full(40, 0.3), np.arange(40))["slope"]["value"] is None
    assert recalibration.linear(np.ones(5), np.ones(5), np.arange(5))["slope"]["value"] is None
    exact = recalibration.linear(2 * np.arange(40.0) + 1, np.arange(40.0), np.arange(40))
    assert exact["slope"]["value"] == pytest.approx(2) and exact["intercept"]["value"] == 20.5


def test_table_one_counts_patients_and_hides_the_few(fabricate):
    spec, _, predictions = fabricate(rows=400)
    draw = rng(0)
    names = [("static", "age"), ("static", "female"), ("static", "rare")]
    x = np.stack([draw.normal(65, 10, 400), draw.integers(0, 2, 400), np.full(400, np.nan)], 1)
    x[:4, 2] = 1.0
    groups = {"sex": np.where(x[:, 1] > 0, "female", "male")}
    values = Values(names, x, predictions.patient, groups)
    found = table_one.describe(
        {"train": values, "test": values}, predictions, spec, min_patients=10
    )
    assert found is not None
    assert [c["name"] for c in found["columns"]] == ["train", "test", "with", "without"]
    test = found["columns"][1]
    assert test["patients"] == len(np.unique(predictions.patient)) and test["rows"] == 400
    np.testing.assert_allclose(
        test["features"][0]["quartiles"], np.quantile(x[:, 0], [0.25, 0.5, 0.75]), rtol=1e-4
    )
    assert test["features"][1]["share"].endswith("%") and test["features"][2] == {
        "observed": "rare"
    }
    assert {*test["groups"]["sex"]} == {"female", "male"}
    hot = predictions.label["ihm"][:, 0] > 0
    known = predictions.label_mask["ihm"][:, 0]
    assert found["columns"][2]["rows"] == (hot & known).sum()
    few = table_one.describe({"test": values}, predictions, spec, min_patients=10**6)
    assert few is not None and few["columns"][0]["patients"] is None and len(few["columns"]) == 1
    assert table_one.describe({}, predictions, spec, min_patients=10) is None


@pytest.mark.parametrize("with_it", [3, 97])
def test_neither_side_of_an_outcome_is_shown_where_one_is_of_few(fabricate, with_it):
    """The other one, beside the whole, would tell how few."""
    spec, _, predictions = fabricate(rows=100)
    predictions = dataclasses.replace(predictions, patient=np.arange(100))
    predictions.label_mask["ihm"][:] = True
    predictions.label["ihm"][:, 0] = np.arange(100) < with_it
    values = Values([("static", "x")], rng(0).normal(size=(100, 1)), predictions.patient)
    found = table_one.describe({"test": values}, predictions, spec, min_patients=10)
    assert found is not None and [c["name"] for c in found["columns"]] == ["test"]


def test_a_rare_category_of_table_one_cannot_be_had_by_subtraction(fabricate):
    spec, _, predictions = fabricate(rows=400)
    x, site = np.zeros((400, 1)), np.full(400, "a")
    site[:150], site[150:230], site[396:] = "b", "c", "d"
    values = Values([("static", "x")], x, predictions.patient, {"site": site})
    found = table_one.describe({"test": values}, predictions, spec, min_patients=10)
    assert found is not None
    shares = found["columns"][0]["groups"]["site"]
    assert {*shares} == {"a", "b", "other categories"}  # d with the next smallest
    assert all(share.endswith("%") for share in shares.values())
