import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m4.eval import holm
from m4.eval.report import words
from m4.eval.results import compose, pooled_patterns, summary, thresholds, write
from m4.eval.scorer import Scorer

SECRET = 880_000_000  # patient ids start here; none may appear in a result


@pytest.fixture(scope="module")
def document(fabricate):
    spec, subsets, predictions = fabricate(patient_offset=SECRET)
    noise = np.random.default_rng(9).random((400, 1))
    references = {"boosting": {"ihm": noise}}
    return compose(
        predictions,
        spec,
        subsets,
        split="test",
        draws=100,
        thresholds=thresholds(predictions, spec),
        references=references,
    )


def rows(document, key, **match):
    return [r for r in document[key] if all(r[k] == v for k, v in match.items())]


def test_document_is_complete_and_plain_json(document, fabricate, tmp_path):
    spec, subsets, predictions = fabricate()
    path = write(document, tmp_path)
    assert json.loads(path.read_text()) == document and path.name == "test.json"
    assert list(tmp_path.rglob("*.part")) == []
    assert len(document["scores"]) == 15 * 4 and len(document["deltas"]) == 14 * 4
    values = summary(predictions, spec)
    for task in document["tasks"]:
        (full,) = rows(document, "scores", task=task, subset="full")
        for name, estimate in full["metrics"].items():
            if "f1_val" not in name and name != "calibration_error":
                assert estimate["value"] == pytest.approx(values[f"{task}/{name}"], rel=1e-4)
            if name == "ece":  # a bootstrap would double its bias
                assert estimate["low"] is None is estimate["high"]
            else:
                assert estimate["low"] <= estimate["high"]


def test_no_patient_identifier_is_written(document):
    text = json.dumps(document)
    assert str(SECRET)[:5] not in text and "uid" not in text


def test_ranking_recovers_what_was_planted(fabricate):
    spec, subsets, predictions = fabricate(rows=3000, tasks=("ihm", "los"))
    out = compose(predictions, spec, subsets, split="test", draws=60)["ranking"]
    for task in ("ihm", "los"):  # a larger error is a larger drop
        order = [row["modality"] for row in out[task]["modalities"]]
        assert order == ["vitals", "labs", "notes", "ecg"], task
    ecg = out["ihm"]["modalities"][-1]["drop"]
    assert ecg["value"] == pytest.approx(0, abs=0.003)  # it carries nothing
    for row in out["ihm"]["modalities"][:3]:  # diluted by patients who never had it
        assert row["drop_if_present"]["value"] > row["drop"]["value"] > 0


def test_deltas_are_paired_on_the_rows_of_the_subset(document):
    (only,) = rows(document, "deltas", task="ihm", subset="only vitals")
    (full,) = rows(document, "scores", task="ihm", subset="full")
    (alone,) = rows(document, "scores", task="ihm", subset="only vitals")
    assert only["patients"] < full["patients"]
    unpaired = full["metrics"]["auroc"]["value"] - alone["metrics"]["auroc"]["value"]
    assert only["metrics"]["auroc"]["value"] != pytest.approx(unpaired, abs=1e-4)


def test_subsets_are_compared_on_the_same_rows(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals", "labs"), tasks=("ihm",))
    out = compose(predictions, spec, subsets, split="test", draws=40)
    known = predictions.label_mask["ihm"]
    for row, subset in zip(rows(out, "scores", task="ihm"), subsets, strict=True):
        s = predictions.index(np.array(subset.keep))
        p = predictions.prediction["ihm"][s].copy()
        p[~predictions.counted[s]] = predictions.prediction["ihm"][0][known[:, 0]].mean(axis=0)
        y, p = predictions.label["ihm"][known], p[known]
        common = row["common"]["auroc"]
        assert common["value"] == pytest.approx(roc_auc_score(y, p), rel=1e-5), subset
        assert common["low"] < common["value"] < common["high"]
    (alone,) = rows(out, "scores", task="ihm", subset="only vitals")
    assert alone["metrics"]["auroc"] != alone["common"]["auroc"]
    (delta,) = rows(out, "deltas", task="ihm", subset="only vitals")
    (full,) = rows(out, "scores", task="ihm", subset="full")
    apart = full["common"]["auroc"]["value"] - alone["common"]["auroc"]["value"]
    assert delta["common"]["auroc"]["value"] == pytest.approx(apart, abs=2e-6)
    ranked = {r["modality"]: r["drop"] for r in out["ranking"]["ihm"]["modalities"]}
    assert ranked["labs"]["value"] == delta["common"]["auroc"]["value"]


def test_out_of_fold_ranking_is_the_event_weighted_mean_of_folds(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals",), tasks=("ihm",))
    fold = predictions.patient % 3
    predictions.prediction["ihm"][:, fold == 1] **= 3  # another network, another scale
    pooled = dataclasses.replace(predictions, fold=fold)
    out = compose(pooled, spec, subsets, split="crossval", draws=40)
    known, p = predictions.label_mask["ihm"][:, 0] & predictions.counted[0], predictions.prediction
    y, p = predictions.label["ihm"][:, 0], p["ihm"][0, :, 0]
    own = [known & (fold == k) for k in range(3)]
    events = [y[rows].sum() for rows in own]
    values = [roc_auc_score(y[rows], p[rows]) for rows in own]
    found = rows(out, "scores", task="ihm", subset="full")[0]["metrics"]
    assert out["folds"] == 3
    assert found["auroc"]["value"] == pytest.approx(np.average(values, weights=events), rel=1e-5)
    assert found["brier"]["value"] == pytest.approx(np.mean((y - p)[known] ** 2), rel=1e-5)
    assert found["auroc"]["value"] > roc_auc_score(y[known], p[known])


def test_drops_are_adjusted_by_holm():
    # 0.01 x 4, then 0.02 x 3, 0.03 x 2 and 0.5; none below the one before
    drops = [{"p": p} for p in (0.02, 0.5, 0.01, 0.03)] + [{"p": None}, {}]
    holm.add(drops)
    assert [d.get("p_holm") for d in drops] == [0.06, 0.5, 0.04, 0.06, None, None]


def test_delta_against_itself_is_zero(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals", "labs"))
    same = {"copy": {n: p[predictions.full()] for n, p in predictions.prediction.items()}}
    out = compose(predictions, spec, subsets, split="test", draws=20, references=same)
    for task in out["references"]["copy"].values():
        for estimate in task["delta"].values():
            assert estimate["value"] == estimate["low"] == estimate["high"] == 0


def test_reference_worse_than_the_model_has_a_positive_delta(document):
    delta = document["references"]["boosting"]["ihm"]["delta"]["auroc"]
    assert delta["low"] > 0 and set(document["references"]["boosting"]) == {"ihm"}


def test_threshold_is_the_validation_one(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals",), tasks=("ihm", "phe"))
    cuts = {"ihm": np.array([0.125])}
    out = compose(predictions, spec, subsets, split="test", draws=10, thresholds=cuts)
    assert out["tasks"]["ihm"]["threshold"] == [0.125]
    assert "f1_val" in out["tasks"]["ihm"]["headline"]
    assert "f1_macro" in out["tasks"]["phe"]["headline"]  # no cut given: 0.5


def test_small_cells_are_suppressed_everywhere(fabricate):
    spec, subsets, predictions = fabricate(rows=40, modalities=("vitals", "labs"))
    few = predictions.label_mask
    few["ihm"][9:] = False
    predictions.label["phe"][3:, 2] = 0.0
    out = compose(predictions, spec, subsets, split="test", draws=10)
    for row in rows(out, "scores", task="ihm") + rows(out, "deltas", task="ihm"):
        assert row["patients"] is None
        for estimate in row["metrics"].values():
            assert estimate["value"] is None and estimate["note"] == "fewer than 10 patients"
    assert out["tasks"]["ihm"]["patients"] is None and out["calibration"]["ihm"] == []
    assert out["tasks"]["phe"]["events"] is None and out["tasks"]["phe"]["prevalence"] is None
    assert not rows(out, "strata", task="ihm")


@pytest.mark.parametrize("few", [3, 0])
@pytest.mark.parametrize("task", ["ihm", "phe"])
def test_events_do_not_tell_of_few_without_the_outcome(fabricate, task, few):
    spec, _, predictions = fabricate(rows=100, modalities=("vitals", "labs"))
    predictions = dataclasses.replace(predictions, patient=np.arange(100))
    predictions.label_mask[task][:] = True
    predictions.label[task][:] = (np.arange(100) % 2)[:, None]
    predictions.label[task][:, -1] = np.arange(100) >= few
    card = Scorer(predictions, spec, spec.task(task)).card()
    assert card["patients"] == 100
    if few:
        assert card["events"] is None and card["prevalence"] is None
        results = {"min_patients": 10, "patients": 900, "tasks": {task: card}}
        assert "<10 patients with the" in words.warnings(results)[0]
        assert "or without it, prove nothing" in words.warnings(results)[0]
    else:  # none is no secret
        assert card["events"] == (100 if task == "ihm" else 50) and card["prevalence"][-1] == 1
    # of 50 patients with two rows each, whose second row lacks the outcome in five
    predictions = dataclasses.replace(predictions, patient=np.arange(100) % 50)
    predictions.label[task][:] = (np.arange(100) % 50 % 2)[:, None]
    predictions.label[task][:, -1] = (np.arange(100) < 50) | (np.arange(100) >= 55)
    card = Scorer(predictions, spec, spec.task(task)).card()
    assert card["events"] is None and card["prevalence"] is None


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([50, 30, 20], [50, 30, 20]),  # nothing small
        ([50, 30, 4], [50, 30]),  # 4 are pooled with the next smallest: 34, shown as 30
        ([50, 12, 7, 6], [50, 10, 10]),  # 7 + 6 = 13 make a pool of their own
        ([8], [None]),  # nobody to pool with
    ],
)
def test_small_patterns_cannot_be_had_by_subtraction(fabricate, counts, expected):
    spec, _, predictions = fabricate()
    bits = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    present = np.repeat(bits[: len(counts)], counts, axis=0)
    small = dataclasses.replace(predictions, present=present, patient=np.arange(sum(counts)))
    assert [row["patients"] for row in pooled_patterns(spec, small, 10)] == expected


def test_subset_counts_are_rounded(document):
    for row in document["scores"] + document["deltas"] + document["strata"]:
        assert row["patients"] % 10 == 0


def test_undefined_is_null_with_a_reason(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals", "labs"), tasks=("ihm",))
    predictions.label["ihm"][:] = 0.0
    out = compose(predictions, spec, subsets, split="test", draws=10)
    (full,) = rows(out, "scores", task="ihm", subset="full")
    assert full["metrics"]["auroc"]["value"] is None
    assert full["metrics"]["auroc"]["note"] == "every label is 0"
    assert math.isnan(summary(predictions, spec)["ihm/auroc"])
    json.dumps(out, allow_nan=False)


def test_a_label_of_one_patient_takes_no_other_interval_away(fabricate):
    spec, subsets, predictions = fabricate(tasks=["phe", "unit"])
    known = np.flatnonzero(predictions.label_mask["phe"].all(axis=1))
    predictions.label["phe"][:, 2] = np.arange(400) == known[0]
    predictions.label["unit"][predictions.label["unit"] == 2] = 0
    predictions.label["unit"][np.flatnonzero(predictions.label_mask["unit"][:, 0])[0]] = 2
    out = compose(predictions, spec, subsets, split="test", draws=100)
    for task, lost, kept in (
        ("phe", "auroc_macro", ("brier", "log_loss", "auroc_micro")),
        ("unit", "auroc_macro", ("brier", "log_loss", "accuracy")),
    ):
        found = rows(out, "scores", task=task, subset="full")[0]["metrics"]
        assert found[lost]["low"] is None and found[lost]["note"].startswith("no interval")
        assert all(found[name]["low"] is not None for name in kept)


def test_subsets_must_be_those_swept(fabricate):
    spec, subsets, predictions = fabricate()
    with pytest.raises(ValueError, match="not those that were swept"):
        compose(predictions, spec, subsets[::-1], split="test", draws=2)
