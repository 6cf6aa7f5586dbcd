"""From one's own files to predictions: the example of the docs, warnings, a spreadsheet."""

import csv
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from m4 import config as configs
from m4.config import program
from m4.data import build, data_sets
from m4.data.sets import tables
from m4.errors import ConfigError
from m4.eval.predictions import Predictions
from m4.run import own_predictions
from m4.specs import DataSpec, ModalitySpec, TaskSpec

ROOT = Path(__file__).parents[1]
EXAMPLE = str(ROOT / "docs/example/ward.toml")


def own(**overrides):
    return configs.check(program.load_file("own"), overrides, "own", say=print)


def test_own_says_what_it_needs():
    with pytest.raises(ConfigError) as error:
        own(**{"data.options.file": EXAMPLE})
    assert "train.select=''" in str(error.value)
    with pytest.raises(ConfigError, match="data.options.file"):
        found = own(**{"train.select": "died/auroc"})
        data_sets.find(found.data.name).spec(**found.data.options.to_dict())
    found = own(**{"data.options.file": EXAMPLE, "train.select": "died/auroc"})
    assert found.data.name == "tables" and found.method.name == "fusemoe"
    meds = configs.check(
        program.load_file("own:meds"), {"train.select": "a/auroc"}, "own", say=print
    )
    assert meds.data.name == "meds"


def test_the_example_is_read_and_is_incomplete():
    found = tables.cohort(ROOT / "docs", seed=0, file=EXAMPLE)
    examples = [e for start in found.splits.values() for e in start()]
    assert len(examples) == 400 and not found.warnings
    shares = {
        name: np.mean([name in e["inputs"] for e in examples]) for name in found.spec.modality_names
    }
    assert shares["person"] == 1 and 0.4 < shares["note"] < 0.7 and 0.5 < shares["laboratory"] < 0.8
    assert 0.1 < np.mean([e["targets"]["died"] for e in examples]) < 0.3


def test_misspelt_and_constant_features_are_warned_of(tmp_path):
    (tmp_path / "example").mkdir()
    rows = [*csv.DictReader((ROOT / "docs/example/ward.csv").read_text().splitlines())]
    with (tmp_path / "example/ward.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"systolic": "120"} for row in rows)
    text = Path(EXAMPLE).read_text().replace('"creatinine"', '"creatinin"')
    (tmp_path / "ward.toml").write_text(text)
    told = []
    options = {"file": str(tmp_path / "ward.toml")}
    build.prepare("tables", tmp_path, tmp_path / "built", options=options, report=told.append)
    lines = build.shift.of_build(told[0])
    assert (
        "laboratory/creatinin: no event has the code 'creatinin'; did you mean 'creatinine'?"
        in lines
    )
    assert "laboratory: never observed in training: creatinin" in lines
    assert "bedside: always the same value in training: systolic" in lines


def test_predictions_by_subject(tmp_path):
    tasks = (
        TaskSpec("died", "binary"),
        TaskSpec("ward", "multiclass", dim=2, labels=("=a", "b")),
        TaskSpec("days", "regression"),
    )
    spec = DataSpec((ModalitySpec("x", "table", (1,)),), tasks)
    rows = 3
    label = {"died": [[1], [0], [0]], "ward": [[0], [1], [0]], "days": [[2.5], [1234567.75], [0]]}
    known = {"died": [[1], [0], [1]], "ward": [[1], [1], [0]], "days": [[1], [1], [0]]}
    found = Predictions(
        subsets=np.ones((1, 1), bool),
        uid=np.array([2, 0, 1]),
        patient=np.arange(rows),
        present=np.ones((rows, 1), bool),
        prediction={
            "died": np.array([[[0.1], [0.2], [0.3]]]),
            "ward": np.full((1, rows, 2), 0.5),
            "days": np.array([[[1.0], [2.0], [3.0]]]),
        },
        label={k: np.array(v, float) for k, v in label.items()},
        label_mask={k: np.array(v, bool) for k, v in known.items()},
        counted=np.ones((1, rows), bool),
        routing={},
    )
    keys = pa.table({"subject_id": ["=1+1", "p2", "p3"], "prediction_time": pa.nulls(3)})
    path = own_predictions.write(tmp_path, "test", found, spec, keys, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = [*csv.DictReader(path.read_text().splitlines())]
    assert [row["subject_id"] for row in read] == ["p3", "'=1+1", "p2"]
    assert [row["died"] for row in read] == ["0.1", "0.2", "0.3"]
    assert [row["died/label"] for row in read] == ["1", "", "0"]
    assert [row["ward/label"] for row in read] == ["'=a", "b", ""]
    assert [row["days/label"] for row in read] == ["2.5", "1234567.8", ""]
