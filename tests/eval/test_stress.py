"""Conditions are scored on the same rows, paired, and drops point one way."""

import dataclasses
import json

import numpy as np
import pytest

from m4.eval import stress
from m4.eval.predictions import Predictions
from m4.eval.report import parts
from m4.eval.report import stress as page
from m4.specs import DataSpec, ModalitySpec, TaskSpec

SPEC = DataSpec(
    (ModalitySpec("a", "table", (2,)), ModalitySpec("b", "table", (2,))),
    (TaskSpec("death", "binary"), TaskSpec("stay", "regression")),
)
N = 300


def predictions(noise, rows, *, seed=0):
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=N)
    death = (rng.random(N) < 1 / (1 + np.exp(-2 * risk))).astype(float)
    stay = risk + rng.normal(size=N)
    told = risk + noise * np.random.default_rng(9).normal(size=N)
    found = {"death": (1 / (1 + np.exp(-2 * told)))[None, :, None], "stay": told[None, :, None]}
    return Predictions(
        subsets=np.ones((1, 2), bool),
        uid=np.arange(N)[rows],
        patient=np.arange(N)[rows] // 2,
        present=np.ones((len(rows), 2), bool),
        prediction={k: v[:, rows].astype(np.float32) for k, v in found.items()},
        label={"death": death[rows, None], "stay": stay[rows, None]},
        label_mask={k: np.ones((len(rows), 1), bool) for k in found},
        counted=np.ones((1, len(rows)), bool),
        routing={},
    )


ALL, SOME = np.arange(N), np.arange(N)[np.arange(N) % 3 > 0]
WHOLE = predictions(0.0, ALL)


def document(*conditions, **options):
    options = {"draws": 200, "left_out": {}, "split": "test"} | options
    return stress.compose(WHOLE, conditions, SPEC, **options)


@pytest.fixture(scope="module")
def found():
    return document(
        stress.Condition("noise", 0.5, WHOLE),
        stress.Condition("noise", 0.7, predictions(3.0, ALL)),
        stress.Condition("mcar", 0.3, predictions(0.0, SOME)),
        left_out={"gaps": "no modality has times"},
    )


def test_nothing_changed_costs_nothing_and_noise_costs_both_tasks(found):
    same, noisy, _ = found["conditions"]
    for task in ("death", "stay"):
        assert same["tasks"][task]["drop"]["value"] == 0
        assert same["tasks"][task]["score"]["value"] == found["whole"][task]["value"]
        drop = noisy["tasks"][task]["drop"]  # AUROC falls, MAE rises: both are drops
        assert drop["value"] > 0 and drop["low"] > 0 and drop["p_holm"] < 0.05
        gap = abs(noisy["tasks"][task]["score"]["value"] - found["whole"][task]["value"])
        assert drop["value"] == pytest.approx(gap, rel=1e-5)  # written with six digits


def test_rows_with_nothing_left_are_scored_with_the_mean_answer(found):
    row = found["conditions"][2]
    assert row["emptied"] == N - len(SOME) and row["lost"] == pytest.approx(1 / 3, abs=0.01)
    p = WHOLE.prediction["stay"][0, :, 0].astype(float)
    p = np.where(np.isin(ALL, SOME), p, p.mean())
    wanted = np.abs(p - WHOLE.label["stay"][:, 0]).mean()
    assert row["tasks"]["stay"]["score"]["value"] == pytest.approx(wanted, abs=1e-6)


def test_few_patients_and_few_emptied_rows_are_not_told():
    few = stress.Condition("mcar", 0.1, predictions(0.0, ALL[:-4]))
    row = document(few)["conditions"][0]
    assert row["emptied"] is None
    told = document(few, min_patients=1000)
    assert told["rows"] is None and told["whole"]["death"]["value"] is None


def test_the_section_tells_what_costs_and_what_does_not(found):
    json.dumps(found, allow_nan=False)
    section = page.section(parts.Run(None, None, None, None, stress=found))
    texts = [p.text for p in section.parts if isinstance(p, parts.Verdict)]
    assert len(texts) == 2 and "noise on values from 0.7 on" in texts[0]
    (fold,) = (p for p in section.parts if isinstance(p, parts.Fold))
    assert len(fold.parts[0].rows) == 3 and fold.parts[0].csv.count("\n") == 4
    assert any("no modality has times" in getattr(p, "text", "") for p in section.parts)
    assert page.section(parts.Run(None, None, None, None)) is None
    nobody = dataclasses.replace(WHOLE)
    few = document(stress.Condition("noise", 0.5, nobody), min_patients=1000)
    moods = {p.mood for p in page.section(parts.Run(None, None, None, None, stress=few)).parts
             if isinstance(p, parts.Verdict)}  # fmt: skip
    assert moods == {"unknown"}
