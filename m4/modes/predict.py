"""`--mode=predict`: predictions of the test split as Parquet, patients as keyed hashes.

Of a data set whose records have a subject and a prediction time of their own (`m4.data.index`),
they are written in the MEDS prediction and label schemas too: `m4.run.meds_predictions`. With
`--on` the predictions are those of new data: `m4.modes.new`.
"""

from pathlib import Path

import ml_collections
import numpy as np
import pyarrow as pa

from m4 import USE
from m4.config import Flags
from m4.data import index
from m4.eval.predictions import Predictions
from m4.modes import eval as eval_mode
from m4.run import meds_predictions as meds
from m4.run import own_predictions as own
from m4.run import pseudonyms
from m4.run.setup import context
from m4.run.workspace import open_incomplete, owned
from m4.specs import DataSpec
from m4.train import processes

SPLIT = "test"


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Writes predictions/test.parquet. See `m4.main`."""
    del flags
    with owned(folder):
        setup, predict = eval_mode.restore(config, folder)
        store = open_incomplete(config, setup.data, SPLIT)
        whole = np.ones((1, len(setup.spec.modalities)), bool)
        with context(setup.mesh):
            found = eval_mode.sweep(config, setup, store, predict, whole)
        if processes.first():
            write(folder, SPLIT, found, setup.spec, index.read(setup.data, SPLIT))


def write(folder: Path, name: str, found: Predictions, spec: DataSpec, keys) -> None:
    """Writes predictions/<name>.parquet and, if records have `keys`, the files of MEDS."""
    path = folder / "predictions" / f"{name}.parquet"
    meds.write_private(path, _table(found, spec, folder), folder)
    print(f"{len(found.uid)} rows in {path}; patients as keyed hashes (key: {folder / 'key'})")
    if keys is not None:
        print(f"by your identifiers, with labels: {own.write(folder, name, found, spec, keys)}")
        for path in meds.write(folder, name, found, spec, keys):
            print(f"MEDS     {path}")


def _table(found, spec: DataSpec, folder: Path) -> pa.Table:
    """Columns: row of the split, hashed patient, `<task>` or `<task>/<label>` for each output."""
    data = {"row": found.uid, "patient": pseudonyms.of(found.patient, folder)}
    for task, values_SNC in found.prediction.items():
        if spec.task(task).kind == "segmentation":  # its scores are no predictions
            continue
        values = values_SNC[0]
        labels = spec.task(task).labels or tuple(map(str, range(values.shape[1])))
        one = values.shape[1] == 1
        data |= {
            task if one else f"{task}/{label}": values[:, c]
            for c, label in enumerate(labels[: values.shape[1]])
        }
    return pa.table(data).replace_schema_metadata({"use": USE})
