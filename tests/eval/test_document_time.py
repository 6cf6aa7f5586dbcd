"""What the document of a large split takes after the sweep, its page included."""

import dataclasses
import json
import time

import numpy as np
import pytest

from m4.eval import operating, reliance, results, table_one
from m4.eval.report import page

MODALITIES = ("vitals", "labs", "notes", "ecg", "cxr", "medications", "codes")
ROWS, LIMIT = 5000, 180  # CPU seconds


def grouped(predictions):
    rows, rng = len(predictions.uid), np.random.default_rng(1)
    groups = {
        "sex": rng.choice(["female", "male"], rows),
        "age": rng.choice(["18-44", "45-64", "65-79", "80+"], rows),
        "unit": rng.choice(["medical", "surgical", "coronary", "trauma"], rows),
    }
    return dataclasses.replace(predictions, groups=groups)


@pytest.mark.slow
def test_seven_modalities_and_five_thousand_rows_take_three_minutes(fabricate, tmp_path):
    """All 127 subsets, four tasks, 1,000 draws, four references, groups, calibration, the page."""
    own = {"modalities": MODALITIES, "how": "all"}
    spec, chosen, test = fabricate(rows=ROWS, **own)
    val, apart = (fabricate(rows=ROWS // 4, seed=seed, **own)[2] for seed in (1, 2))
    test = grouped(test)
    assert len(test.subsets) == 127
    names = ("boosting", "linear", "presence", "late")
    answers = {task: p[0] * 0.9 + 0.05 for task, p in test.prediction.items()}
    first_NF = np.random.default_rng(2).normal(size=(ROWS, 40))
    values = table_one.Values(
        [(MODALITIES[f % 7], str(f)) for f in range(40)], first_NF, test.patient, test.groups
    )
    began, parts = time.process_time(), {}
    cuts = results.thresholds(val, spec)
    document = results.compose(
        test,
        spec,
        chosen,
        split="test",
        thresholds=cuts,
        references=dict.fromkeys(names, answers),
        cuts=operating.choose(val, spec),
        values={"test": values},
    )
    parts["scores"] = time.process_time() - began
    document |= reliance.sections(
        test, spec, apart, alpha=0.1, min_patients=10, seed=0, thresholds=cuts
    )
    parts["reliance"] = time.process_time() - began - parts["scores"]
    assert {"attribution", "monotone", "next_test", "conformal", "groups"} <= {*document}
    assert {*document["next_test"]} == {"ihm", "unit"}
    (tmp_path / "config.json").write_text("{}")
    results.write(document, tmp_path)
    assert page.write(tmp_path).stat().st_size > 100_000
    whole = time.process_time() - began
    print({name: round(seconds) for name, seconds in parts.items()}, "whole", round(whole))
    print("document", len(json.dumps(document)) // 1000, "kB")
    assert whole < LIMIT
