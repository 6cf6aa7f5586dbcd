"""The blend is the plain mean of the model and boosting, on one footing; and it is compared."""

import dataclasses

import numpy as np
import pytest

from m4.eval import blend
from m4.eval.averages import mean_of
from m4.eval.report import words
from m4.eval.results import compose
from m4.specs import TaskSpec


def mean(task, both):
    return mean_of(task, np.stack(both))


def test_means_by_hand():
    # logits of 0.5 and 0.9 are 0 and log 9, their mean log 3: 3 / 4
    for kind in ("binary", "multilabel"):
        found = mean(TaskSpec("t", kind), [np.array([[0.5]]), np.array([[0.9]])])
        assert found[0, 0] == pytest.approx(0.75)
    # geometric means 0.3, 0.2, 0.2, then over their sum 0.7
    a, b = np.array([[0.9, 0.1, 0.2]]), np.array([[0.1, 0.4, 0.2]])
    found = mean(TaskSpec("t", "multiclass", dim=3), [a, b])
    np.testing.assert_allclose(found, np.array([[3, 2, 2]]) / 7)
    assert mean(TaskSpec("t", "regression"), [a, b])[0, 0] == pytest.approx(0.5)
    log = TaskSpec("t", "regression", transform="log1p")
    assert mean(log, [np.array([[0.0]]), np.array([[3.0]])])[0, 0] == pytest.approx(1.0)
    sure = mean(TaskSpec("t", "binary"), [np.array([[0.0]]), np.array([[1.0]])])
    assert sure[0, 0] == pytest.approx(0.5, abs=1e-6)  # both are clipped alike


def test_what_boosting_could_not_be_fitted_to_is_the_networks(fabricate):
    spec, _, predictions = fabricate(modalities=("vitals", "labs"), rows=40)
    whole = {
        name: p[predictions.full()].astype(float) for name, p in predictions.prediction.items()
    }
    theirs = {name: p.copy() for name, p in whole.items()}
    theirs["ihm"][:] = 0.0  # nobody died in training
    theirs["phe"][:, 1] = 1.0
    theirs["unit"][:, 0] = 0.0  # a class that training lacks; the others share what is left
    theirs["unit"] /= theirs["unit"].sum(axis=1, keepdims=True)
    found = blend.row(predictions, spec, {"boosting": theirs})
    at = predictions.uid
    np.testing.assert_allclose(found["ihm"][at], whole["ihm"], rtol=1e-6)
    np.testing.assert_allclose(found["phe"][at], whole["phe"], rtol=1e-5)
    np.testing.assert_allclose(found["unit"][at], whole["unit"], rtol=1e-5)


def test_out_of_fold_the_network_is_the_blend_only_where_the_fold_knew_one_answer(fabricate):
    spec, _, predictions = fabricate(modalities=("vitals", "labs"), rows=60)
    fold = np.arange(60) % 3
    predictions = dataclasses.replace(
        predictions, fold=fold, uid=np.random.default_rng(0).permutation(60)
    )
    own = {n: p[predictions.full()].astype(float) for n, p in predictions.prediction.items()}
    theirs = {name: p[::-1].copy() for name, p in own.items()}
    lost = fold == 1  # nobody died among those whom the network of fold 1 was trained on
    theirs["ihm"][lost] = 0.0
    theirs["unit"][lost, 0] = 0.0  # nor had anybody class 0
    theirs["unit"] /= theirs["unit"].sum(axis=1, keepdims=True)
    handed = {name: p[np.argsort(predictions.uid)] for name, p in theirs.items()}
    found = blend.row(predictions, spec, {"boosting": handed})
    found = {name: p[predictions.uid] for name, p in found.items()}
    p_N, q_N = own["ihm"][:, 0], theirs["ihm"][:, 0]
    odds_N = np.sqrt(p_N / (1 - p_N) * q_N / np.maximum(1 - q_N, 1e-9))
    expected_N = np.where(lost, p_N, odds_N / (1 + odds_N))
    np.testing.assert_allclose(found["ihm"][:, 0], expected_N, rtol=1e-5)
    both_NC = np.sqrt(own["unit"] * theirs["unit"])
    both_NC[lost, 0] = 0.0
    both_NC /= both_NC.sum(axis=1, keepdims=True)
    both_NC[lost] *= 1 - own["unit"][lost, :1]
    both_NC[lost, 0] = own["unit"][lost, 0]
    np.testing.assert_allclose(found["unit"], both_NC, rtol=1e-5)


@pytest.fixture(scope="module")
def document(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals", "labs"), rows=900)
    rng, full = np.random.default_rng(1), predictions.full()
    # boosting that errs independently of the model: the mean of both is better than either
    references = {
        "boosting": {
            name: np.clip(p[full] * np.exp(0.4 * rng.normal(size=p[full].shape)), 0.01, None)
            for name, p in predictions.prediction.items()
        }
    }
    for name in ("ihm", "phe"):
        references["boosting"][name] = np.clip(references["boosting"][name], 0.01, 0.99)
    references["boosting"]["unit"] /= references["boosting"]["unit"].sum(1, keepdims=True)
    uid = rng.permutation(900)  # rows of the split in another order
    for by_task in references.values():
        for name, p in by_task.items():
            by_task[name] = p[np.argsort(uid)]
    shuffled = dataclasses.replace(predictions, uid=uid)
    own = {"draws": 60, "split": "test", "references": references}
    return spec, shuffled, references, compose(shuffled, spec, subsets, **own)


def test_the_blend_is_a_row_of_every_kind(document):
    spec, predictions, references, out = document
    assert [*out["references"]] == ["boosting", "blend"]
    assert [*references] == ["boosting"]  # what was handed in stays
    assert {*out["references"]["blend"]} == {"ihm", "phe", "unit", "los"}
    mean = blend.row(predictions, spec, references)["ihm"][predictions.uid]
    mask = predictions.label_mask["ihm"][:, 0]
    y = predictions.label["ihm"][:, 0]
    found = out["references"]["blend"]["ihm"]
    brier = np.mean((mean[mask, 0] - y[mask]) ** 2)
    assert found["metrics"]["brier"]["value"] == pytest.approx(brier, rel=1e-5)
    p, q = (
        x[:, 0].astype(float)
        for x in (predictions.prediction["ihm"][0], references["boosting"]["ihm"][predictions.uid])
    )
    odds = np.sqrt(p / (1 - p) * q / (1 - q))
    np.testing.assert_allclose(mean[:, 0], odds / (1 + odds), rtol=1e-6)


def test_its_differences_are_paired_and_add_up(document):
    *_, out = document
    for task, metric in (("ihm", "auroc"), ("unit", "auroc_macro"), ("los", "mae")):
        rows = {name: found[task] for name, found in out["references"].items()}
        (own,) = [r for r in out["scores"] if (r["task"], r["subset"]) == (task, "full")]
        value = {name: row["metrics"][metric]["value"] for name, row in rows.items()}
        against = rows["blend"]["against"]["boosting"][metric]
        assert against["value"] == pytest.approx(value["blend"] - value["boosting"], abs=2e-6)
        delta = rows["blend"]["delta"][metric]["value"]
        model = own["metrics"][metric]["value"]
        assert delta == pytest.approx(model - value["blend"], abs=1e-4)
        if task != "unit":  # paired: shorter than the interval of one of the two
            both = rows["blend"]["metrics"][metric]
            assert against["high"] - against["low"] < both["high"] - both["low"]
    assert out["references"]["boosting"]["ihm"]["against"] == {}
    assert out["references"]["blend"]["ihm"]["calibration"][0]["curve"]


def test_words_of_the_blend_and_of_the_strongest(document):
    *_, out = document
    assert {v["reference"] for v in words.verdicts(out)} == {"boosting"}
    (line,) = [line for line in words.blends(out) if line.startswith("ihm")]
    found = out["references"]["blend"]["ihm"]
    assert words.text(found["metrics"]["auroc"]["value"]) in line
    assert words.text(found["against"]["boosting"]["auroc"]["value"], sign=True) in line
    card = {"primary": "auroc", "kind": "binary"}

    def row(value):
        return {"t": {"metrics": {"auroc": {"value": value}}, "delta": {}}}

    rows = {"boosting": row(0.7), "late": row(0.8), "blend": row(0.9), "linear": row(None)}
    assert words.strongest({"tasks": {"t": card}, "references": rows}, "t") == "late"
    lower = {"t": {"primary": "mae", "kind": "regression"}}
    rows = {
        name: {"t": {"metrics": {"mae": {"value": v}}, "delta": {}}}
        for name, v in (("boosting", 2.0), ("linear", 3.0))
    }
    assert words.strongest({"tasks": lower, "references": rows}, "t") == "boosting"


def test_no_blend_without_boosting(fabricate):
    spec, subsets, predictions = fabricate(modalities=("vitals",), tasks=("ihm",))
    linear = {"linear": {"ihm": predictions.prediction["ihm"][0]}}
    out = compose(predictions, spec, subsets, split="test", draws=10, references=linear)
    assert [*out["references"]] == ["linear"] and words.blends(out) == []
