"""`predictions/<name>-by-subject.csv`: a row per question, with the user's identifiers and labels.

    subject_id, prediction_time, died, died/label, phe/sepsis, phe/sepsis/label, days, days/label

and after the first two `record_id`, where records have an identifier of their own; at the end those
of `m4.run.beside` but for gains, a set as {no died | died}. What opens in a
spreadsheet; the same as Parquet, task by task, is in `predictions/meds`. It names patients:
readable by its owner only. Points with nothing to predict from have no row.
"""

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m4 import cells, seal
from m4.eval.predictions import Predictions
from m4.specs import DataSpec

KINDS = ("binary", "multilabel", "multiclass", "regression")


def write(
    work: Path,
    name: str,
    found: Predictions,
    spec: DataSpec,
    keys: pa.Table,
    more: Mapping[str, Any],
) -> Path:
    """Writes the file and returns its path; `keys` as of `m4.run.meds_predictions.write`.

    `more` are columns beside the predictions, see `m4.run.beside`.
    """
    keys = keys.take(pa.array(found.uid))
    columns: dict[str, list] = {
        field: [_safe(cell) for cell in keys[field].to_pylist()] for field in keys.column_names
    }
    for task in spec.tasks:
        if task.kind not in KINDS or task.name not in found.prediction:
            continue
        value_NC = found.prediction[task.name][found.full()]
        label_NL, known_NL = found.label[task.name], found.label_mask[task.name] > 0
        names = task.labels or tuple(map(str, range(value_NC.shape[1])))
        for c in range(value_NC.shape[1]):
            head = task.name if value_NC.shape[1] == 1 else f"{task.name}/{names[c]}"
            head = f"{head}/predicted" if head in keys.column_names else head
            columns[head] = [f"{value:.6g}" for value in value_NC[:, c].tolist()]
            if task.kind != "multiclass":
                columns[f"{head}/label"] = _texts(label_NL[:, c], known_NL[:, c])
        if task.kind == "multiclass":
            pairs = zip(label_NL[:, 0].tolist(), known_NL[:, 0].tolist(), strict=True)
            columns[f"{task.name}/label"] = [_safe(names[int(i)]) if k else "" for i, k in pairs]
    for column, values in more.items():
        if column not in columns and not column.startswith("gain/"):
            columns[column] = [_cell(value) for value in values.to_pylist()]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(map(_safe, columns))
    rows.writerows(zip(*columns.values(), strict=True))
    path = work / "predictions" / f"{name}-by-subject.csv"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with seal.replaced(path, work) as partial, open(os.open(partial, flags, 0o600), "wb") as file:
        file.write(text.getvalue().encode())
    return path


def _cell(value: Any) -> object:
    """A number, name or set as text, empty where it is null."""
    if value is None:
        return ""
    if isinstance(value, list):
        return _safe(f"{{{' | '.join(value)}}}")
    return f"{value:.6g}" if isinstance(value, float) else _safe(value)


def _safe(cell: object) -> object:
    return cells.uncomputed(cell) if isinstance(cell, str) else cell


def _texts(value_N: np.ndarray, known_N: np.ndarray) -> list[str]:
    """Labels as text, empty where unknown."""
    found = zip(value_N.tolist(), known_N.tolist(), strict=True)
    return [_exact(value) if known and not math.isnan(value) else "" for value, known in found]


def _exact(value: float) -> str:
    """A label as short as it can be told, in the precision that it is kept in."""
    short = f"{value:.6g}"
    return (
        short
        if np.float32(short) == np.float32(value)
        else np.format_float_positional(np.float32(value), trim="-")
    )
