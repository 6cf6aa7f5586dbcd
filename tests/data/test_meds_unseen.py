"""A MEDS data set that nobody prepared: draft, describe, train, predict, without an edit."""

import json

import pyarrow.parquet as pq
import pytest

from m4.data import index
from m4.data.__main__ import main as data_main
from m4.data.sets.declared import survey
from m4.main import main
from tests import toy
from tests.data import hostile_meds

PREDICTED = {  # task -> column of the label, of the prediction
    "death_in_30d": ("boolean_value", "predicted_boolean_probability"),
    "los_days": ("float_value", "predicted_float_value"),
    "visits": ("float_value", "predicted_float_value"),
    "ward": ("categorical_value", "predicted_categorical_value"),
}


def test_from_a_draft_to_predictions(tmp_path, monkeypatch, capsys):
    ward = tmp_path / "odd ward"
    points = hostile_meds.write(ward)
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    assert data_main(["draft", str(ward)]) == 0
    draft = tmp_path / "draft.toml"
    draft.write_text(capsys.readouterr().out)
    config = tmp_path / "c.py"
    config.write_text(toy.config("meds", draft, "death_in_30d/auroc", choose="last", bootstrap=10))
    flags = [f"--config={config}", f"--workdir={tmp_path / 'w'}"]
    assert main(flags) == 0, capsys.readouterr()
    assert "points of subjects in no split" in capsys.readouterr().out  # those of 'external'
    assert data_main(["describe", str(tmp_path / "data")]) == 0
    assert main([*flags, "--mode=predict"]) == 0, capsys.readouterr()
    (built,) = (tmp_path / "data/meds").glob("*/manifest.json")
    asked = {
        (r["subject_id"], r["prediction_time"])
        for r in index.read(built.parent, "test").to_pylist()
    }
    assert len(asked) > 20 and all(time in points[subject] for subject, time in asked)
    for task, columns in PREDICTED.items():
        path = tmp_path / f"w/predictions/meds/test/{task}.parquet"
        rows = pq.read_table(path).to_pylist()
        assert {(r["subject_id"], r["prediction_time"]) for r in rows} <= asked
        assert len(rows) > 0.8 * len(asked)  # all but those with nothing to predict from
        assert all(r[column] is not None for r in rows for column in columns), task
    other = hostile_meds.write(tmp_path / "other ward", num_subjects=30, seed=1)
    assert main([f"--workdir={tmp_path / 'w'}", f"--on={tmp_path / 'other ward'}"]) == 0
    predicted = json.loads((tmp_path / "w/predictions/other_ward.json").read_text())
    assert predicted["points"] == sum(map(len, other.values())) == 45  # of all splits, and none
    assert 36 < predicted["predicted"] <= 45


@pytest.mark.parametrize(
    ("code", "group"),
    [("LAB//1//mg/dL", "LAB//"), ("LOINC/2160-0", "LOINC/"), ("HR", ""), ("MEDS_BIRTH",) * 2],
)
def test_groups_of_codes(code, group):
    assert survey.group_of(code) == group
