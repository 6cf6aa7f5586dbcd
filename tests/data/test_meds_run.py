"""MEDS in, predictions out: cross-validation and prediction from the command line, and pooling."""

import os
import stat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4 import seal
from m4.eval.predictions import Predictions
from m4.eval.subsets import Subset
from m4.main import main
from m4.modes import crossval
from m4.modes.eval import Evaluation
from m4.run import meds_predictions as meds
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.data import meds_folder as mf

CONFIG = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name='meds', options=dict(file={file!r}, fold=0, num_folds=2)),
        method=dict(name='tests.toy:Toy', width=4),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=8, log_every=1, eval_every=2, save_every=2,
                   select='death/auroc', choose='last'),
        eval=dict(batch_size=16, bootstrap=10, subsets=False),
    ))
"""
SCHEMA = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "boolean_value": pa.bool_(),
    "predicted_boolean_value": pa.bool_(),
    "predicted_boolean_probability": pa.float64(),
}


def test_folds_are_trained_pooled_and_written_in_the_meds_schema(tmp_path, monkeypatch):
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    given = mf.cohort_tables(60)
    file = mf.write(tmp_path, given)
    (tmp_path / "c.py").write_text(CONFIG.format(file=file))
    flags = [f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}"]
    assert main([*flags, "--mode=crossval"]) == 0
    path = tmp_path / "w/predictions/meds/crossval/death.parquet"
    found = pq.read_table(path)
    assert {f.name: f.type for f in found.schema} == SCHEMA
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    asked = {(r["subject_id"], r["prediction_time"]): r["boolean_value"]
             for r in given["labels/death/0.parquet"].to_pylist()}  # fmt: skip
    rows = {(r["subject_id"], r["prediction_time"]): r for r in found.to_pylist()}
    assert len(rows) == found.num_rows and rows.keys() <= asked.keys()
    assert len(asked) - len(rows) < 5  # those with nothing to predict from
    for key, row in rows.items():
        assert row["boolean_value"] == asked[key]
        assert row["predicted_boolean_value"] == (row["predicted_boolean_probability"] >= 0.5)
    own = [f"--workdir={tmp_path / 'w/fold_1'}", "--mode=predict"]
    assert main(own) == 0
    fold = pq.read_table(tmp_path / "w/fold_1/predictions/meds/test/death.parquet").to_pylist()
    assert 20 < len(fold) < len(rows)
    for row in fold:  # the same model, the same number
        pooled = rows[row["subject_id"], row["prediction_time"]]["predicted_boolean_probability"]
        assert row["predicted_boolean_probability"] == pytest.approx(pooled, abs=1e-6)
    labels = pq.read_table(tmp_path / "w/fold_1/predictions/meds/test/labels/death.parquet")
    assert labels.column_names == ["subject_id", "prediction_time", "boolean_value"]
    assert main([*flags, "--mode=crossval", "--config.data.name=synthetic"]) == 2


def test_damaged_events_end_a_run_with_code_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    file = mf.write(tmp_path, mf.cohort_tables(20))
    (tmp_path / "hospital/data/tuning/0.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "c.py").write_text(CONFIG.format(file=file))
    assert main([f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("m4: data error: ") and "tuning/0.parquet: cut short, corrupt" in line


SPEC = DataSpec(
    (ModalitySpec("a", "table", (1,)), ModalitySpec("b", "table", (1,))),
    (
        TaskSpec("death", "binary"),
        TaskSpec("unit", "multiclass", dim=3, labels=("x", "y", "z")),
        TaskSpec("los", "regression"),
    ),
)


def evaluation(patients, shift, keeps):
    """Row i predicts shift + i / 10; the last row of the split has nothing and is not predicted."""
    rows = len(patients)
    value = shift + np.arange(rows) / 10
    one = np.broadcast_to(value[None, :, None], (len(keeps), rows, 1))
    return Evaluation(
        Predictions(
            subsets=np.array(keeps),
            uid=np.arange(rows),
            patient=np.array(patients),
            present=np.ones((rows, 2), bool),
            prediction={"death": one, "unit": one + np.array([0, 0.1, 0]), "los": one},
            label={t: np.ones((rows, 1)) for t in SPEC.task_names},
            label_mask={t: np.arange(rows)[:, None] > 0 for t in SPEC.task_names},
            counted=np.ones((len(keeps), rows), bool),
            routing={},
        ),
        [Subset("", "full" if all(k) else "other", k) for k in keeps],
        {},
        {"boosting": {"death": np.full((rows + 1, 1), shift)}},
        rows + 1,
    )


def test_pooling_keeps_rows_references_and_common_subsets_together():
    full, only = (True, True), (True, False)
    parts = [evaluation([1, 1, 2], 0.0, [full, only]), evaluation([3, 4], 0.5, [full])]
    pooled = crossval.pool(parts)
    assert [s.keep for s in pooled.chosen] == [full] and pooled.num_rows == 7
    assert pooled.found.uid.tolist() == [0, 1, 2, 4, 5]
    assert pooled.found.patient.tolist() == [1, 1, 2, 3, 4]
    np.testing.assert_allclose(pooled.found.prediction["death"][0, :, 0], [0, 0.1, 0.2, 0.5, 0.6])
    reference = pooled.references["boosting"]["death"][pooled.found.uid, 0]
    np.testing.assert_array_equal(reference, [0, 0, 0, 0.5, 0.5])


def test_predictions_of_every_kind(tmp_path):
    found = evaluation([1, 2], 0.45, [(True, True)]).found
    keys = pa.table(
        {"subject_id": [7, 8, 9], "prediction_time": pa.array([1, 2, 3], pa.timestamp("us"))}
    )
    names = [path.name for path in meds.write(tmp_path, "test", found, SPEC, keys)]
    assert names == ["death.parquet", "unit.parquet", "los.parquet"]
    folder = tmp_path / "predictions/meds/test"
    assert seal.listed(tmp_path) == sorted(
        f"predictions/meds/test/{name}" for name in [*names, *(f"labels/{n}" for n in names)]
    )
    rows = pq.read_table(folder / "death.parquet").to_pylist()
    assert [r["boolean_value"] for r in rows] == [None, True]
    assert [r["predicted_boolean_value"] for r in rows] == [False, True]  # 0.45, 0.55
    rows = pq.read_table(folder / "unit.parquet").to_pylist()
    assert [r["predicted_categorical_value"] for r in rows] == ["y", "y"]
    assert rows[1]["categorical_value"] == "y" and rows[1]["probability/y"] == pytest.approx(0.65)
    assert pq.read_table(folder / "labels/los.parquet").to_pylist()[0]["subject_id"] == 8


@pytest.mark.parametrize("before", [None, 0o750])
def test_a_folder_that_is_there_keeps_its_mode(tmp_path, before):
    folder = tmp_path / "shared"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)
    meds.write_private(folder / "death.parquet", pa.table({"x": [1]}), tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == (before or 0o700)
    assert stat.S_IMODE((folder / "death.parquet").stat().st_mode) == 0o600
