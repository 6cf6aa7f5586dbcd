"""Advice of a model that was trained, on patients whom it never saw, where the truth is planted."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from m4.data.sets import synthetic
from m4.data.sets.synthetic import triage
from m4.main import main

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
def test_a_trained_model_advises_better_than_chance_order_and_doubt(tmp_path):
    where = [f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path / 'data'}"]
    config = f"--config={CONFIGS / 'fusemoe_mimic.py'}:next_test"
    assert main([config, *where, "--config.train.compile=little"]) == 0
    found = json.loads((tmp_path / "run/results/test.json").read_text())["next_test"]["ihm48"]
    assert found["start"] == "vitals"
    for row in found["against"]:
        assert row["difference"]["low"] > 0, row
    gain = {row["arm"]: row["gain"] for row in found["arms"]}
    assert gain["bound"]["low"] > gain["value"]["high"] and gain["value"]["low"] > 0
    assert {row["modality"] for row in found["next"]} == {*triage.TESTS.values()}

    # Who lacks the test of the organ with the problem is told to have that one.
    options = json.loads((tmp_path / "run/config.json").read_text())["data"]["options"]
    examples = [*synthetic.cohort(None, seed=0, **options).splits["test"]()]
    told = pq.read_table(tmp_path / "run/results/test_next.parquet").to_pylist()
    own, right = list(triage.TESTS.values()), []
    for row in told:
        example = examples[row["row"]]
        problem, lacks = example["targets"]["problem"], {*own} - example["inputs"].keys()
        if problem is not None and len(lacks) > 1 and own[int(problem)] in lacks:
            right.append(row["next/ihm48"] == own[int(problem)])
    assert len(right) > 20 and np.mean(right) > 0.75, np.mean(right)
