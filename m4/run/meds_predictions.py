"""Predictions and labels in the schemas of MEDS, to be joined and scored by others' tools.

Per task `<task>.parquet` (a label of a multilabel task: `<task>-<label>.parquet`):

| task | label | prediction |
|---|---|---|
| binary | boolean_value | predicted_boolean_value (>= 0.5), predicted_boolean_probability |
| multiclass | categorical_value | predicted_categorical_value, probability/<class> |
| regression | float_value | predicted_float_value |

each after `subject_id` and `prediction_time`; the label is null where it is unknown. The first row
is the prediction schema of meds-evaluation; MEDS defines none for the other two. `labels/` holds
the known labels alone, in the label schema. Points with nothing to predict from have no row.
These files name patients: they are readable by their owner only.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m4 import seal
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec, file_name

CUT = 0.5
FOLDER = Path("predictions/meds")
KINDS = ("binary", "multilabel", "multiclass", "regression")


def write(work: Path, split: str, found: Predictions, spec: DataSpec, keys: pa.Table) -> list[Path]:
    """Writes every task's predictions and labels; returns the paths of the predictions.

    They lie in `predictions/meds/<split>` of the work directory. `keys` has one row per record of
    the split; `found.uid` says which records were predicted.
    """
    folder, paths = work / FOLDER / split, []
    for name, table in tables(found, spec, keys):
        paths += [] if name.startswith("labels/") else [folder / name]
        write_private(folder / name, table, work)
    return paths


def tables(found: Predictions, spec: DataSpec, keys: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The files that `write` writes, by name."""
    keys = keys.take(pa.array(found.uid))
    for task in spec.tasks:
        if task.kind not in KINDS or task.name not in found.prediction:
            continue
        for name, label, predicted in _columns(task, found):
            columns = {field: keys[field] for field in keys.column_names}
            yield f"{name}.parquet", pa.table({**columns, **label, **predicted})
            known = pa.table({**columns, **label})
            yield f"labels/{name}.parquet", known.filter(next(iter(label.values())).is_valid())


def write_private(path: Path, table: pa.Table, work: Path) -> None:
    """Writes a Parquet file that only its owner can read, whole or not at all; `work` seals it.

    So is its folder, if that is made here; one that is there keeps its mode.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with seal.replaced(path, work) as partial, open(os.open(partial, flags, 0o600), "wb") as file:
        pq.write_table(table, file)


def _columns(task: TaskSpec, found: Predictions) -> Iterator[tuple[str, dict, dict]]:
    """(file name, label column, prediction columns)."""
    values_NC = found.prediction[task.name][found.full()].astype(np.float64)
    label_NL, unknown_NL = found.label[task.name], ~found.label_mask[task.name]
    if task.kind in ("binary", "multilabel"):
        for c in range(values_NC.shape[1]):
            label = pa.array(label_NL[:, c] > 0, pa.bool_(), mask=unknown_NL[:, c])
            names = task.labels or tuple(map(str, range(task.dim)))
            yield (
                task.name if task.kind == "binary" else file_name(f"{task.name}-{names[c]}"),
                {"boolean_value": label},
                {
                    "predicted_boolean_value": pa.array(values_NC[:, c] >= CUT),
                    "predicted_boolean_probability": pa.array(values_NC[:, c]),
                },
            )
    elif task.kind == "multiclass":
        names = np.array(task.labels or [*map(str, range(task.dim))])
        label = pa.array(names[label_NL[:, 0].astype(int)], pa.string(), mask=unknown_NL[:, 0])
        predicted = {"predicted_categorical_value": pa.array(names[values_NC.argmax(axis=1)])}
        predicted |= {f"probability/{n}": pa.array(values_NC[:, c]) for c, n in enumerate(names)}
        yield task.name, {"categorical_value": label}, predicted
    else:
        label = pa.array(label_NL[:, 0].astype(np.float32), mask=unknown_NL[:, 0])
        yield (
            task.name,
            {"float_value": label},
            {"predicted_float_value": pa.array(values_NC[:, 0].astype(np.float32))},
        )
