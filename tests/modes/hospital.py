"""A small hospital, a run trained on it, and folders of new data like it."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4.main import main
from tests import toy
from tests.data import meds_folder as mf

DEFINITION = mf.DEFINITION.replace(
    "[modalities.vitals]",
    '[tasks.los]\nkind = "regression"\ntransform = "log1p"\nlabels = "labels/los"\n'
    "[modalities.vitals]",
)
VALUE = {"death": "predicted_boolean_probability", "los": "predicted_float_value"}
POINT = ["subject_id", "prediction_time"]


def everyone():
    """The training hospital: mf's, and a length of stay for every point."""
    given = mf.cohort_tables(60)
    death = given["labels/death/0.parquet"]
    days = pa.array(np.random.default_rng(1).exponential(4, len(death)), pa.float32())
    given["labels/los/0.parquet"] = death.select(POINT).append_column("float_value", days)
    return given


def train(folder):
    """A run in 'w' with the predictions of its test split; all that it was made of is gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_RAW_DIR", str(folder))
        patch.setenv("M4_DATA_DIR", str(folder / "data"))
        file = mf.write(folder, everyone(), definition=DEFINITION)
        (folder / "c.py").write_text(toy.config("meds", file, "death/auroc", choose="last"))
        assert main([f"--config={folder / 'c.py'}", f"--workdir={folder / 'w'}"]) == 0
        assert main([f"--workdir={folder / 'w'}", "--mode=predict"]) == 0
    for gone in ("data", "hospital"):
        shutil.rmtree(folder / gone)
    for gone in ("spec.toml", "c.py"):
        (folder / gone).unlink()


def write(place, name, given):
    """A new folder, without anything that was there before."""
    shutil.rmtree(place / name, ignore_errors=True)
    mf.write(place, given)
    (place / "spec.toml").unlink()
    (place / "hospital").rename(place / name)
    return place / name


def ask(place, name, given=None):
    """Exit code of predicting on a new folder."""
    folder = place / name if given is None else write(place, name, given)
    return main([f"--workdir={place / 'w'}", f"--on={folder}"])


def predicted(place, name):
    """(subject, time, task) -> prediction."""
    found = {}
    for task, column in VALUE.items():
        for row in pq.read_table(place / f"w/predictions/meds/{name}/{task}.parquet").to_pylist():
            found[row["subject_id"], row["prediction_time"], task] = row[column]
    return found


def only(given, keep):
    """The folder of the subjects of which `keep` is true."""
    return {
        path: table.filter(pa.array([keep(s) for s in table["subject_id"].to_pylist()]))
        for path, table in given.items()
    }


def with_events(given, rows):
    """And these events, in a shard of their own."""
    return {**given, "data/more/0.parquet": mf.events(rows)}
