"""`--mode=predict`: predictions of the test split as Parquet, patients as keyed hashes.

Beside them stand prediction sets or intervals, and which test should come next: `m4.run.beside`.

Of a data set whose records have a subject and a prediction time of their own (`m4.data.index`),
they are written in the MEDS prediction and label schemas too: `m4.run.meds_predictions`. With
`--on` the predictions are those of new data: `m4.modes.new`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from m4 import USE
from m4.config import Flags
from m4.data import index
from m4.eval.predictions import Predictions
from m4.modes import eval as eval_mode
from m4.run import beside, pseudonyms
from m4.run import meds_predictions as meds
from m4.run import own_predictions as own
from m4.run.setup import context
from m4.run.workspace import open_incomplete, owned
from m4.specs import DataSpec
from m4.train import processes

SPLIT = "test"
KEYS = ("row", "patient")  # columns before the predictions


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
            known = beside.of(folder, config, setup.spec)
            own_columns = known.columns(found, SPLIT)
            keys = index.read(setup.data, SPLIT)
            write(folder, SPLIT, found, setup.spec, keys, own_columns)
            for line in known.said(own_columns):
                print(line)


def write(
    folder: Path, name: str, found: Predictions, spec: DataSpec, keys, more: Mapping[str, Any]
) -> None:
    """Writes predictions/<name>.parquet and, if records have `keys`, the files of MEDS.

    `more` are columns beside the predictions, see `m4.run.beside`.
    """
    path = folder / "predictions" / f"{name}.parquet"
    meds.write_private(path, _table(found, spec, folder, more), folder)
    print(f"{len(found.uid)} rows in {path}; patients as keyed hashes (key: {folder / 'key'})")
    if keys is not None:
        place = own.write(folder, name, found, spec, keys, more)
        print(f"by your identifiers, with labels: {place}")
        for path in meds.write(folder, name, found, spec, keys):
            print(f"MEDS     {path}")


def _table(found, spec: DataSpec, folder: Path, more: Mapping[str, Any]) -> pa.Table:
    """Columns: row of the split, hashed patient, `<task>` or `<task>/<label>` for each output.

    And those of `more` that are called as no output is.
    """
    keys = found.uid, pseudonyms.of(found.patient, folder)
    data: dict[str, Any] = dict(zip(KEYS, keys, strict=True))
    for task, values_SNC in found.prediction.items():
        if spec.task(task).kind == "segmentation":  # its scores are no predictions
            continue
        values = values_SNC[0]
        labels = spec.task(task).labels or tuple(map(str, range(values.shape[1])))
        one = values.shape[1] == 1
        for c, label in enumerate(labels[: values.shape[1]]):
            name = task if one else f"{task}/{label}"
            data[f"{name}/predicted" if name in KEYS else name] = values[:, c]
    data |= {column: values for column, values in more.items() if column not in data}
    return pa.table(data).replace_schema_metadata({"use": USE})
