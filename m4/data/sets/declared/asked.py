"""What a trained model is asked about new data: the prediction points, with or without labels.

They are those of the label files, whose label columns may be empty or absent, or the rows of a file
`points.parquet` (`.csv`, `.csv.gz`) with the subject and time columns of the first task; then label
files only add what is known at these points. Nobody is split: all points are in the split 'new'.
"""

import dataclasses
from pathlib import Path

import numpy as np

from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import Definition, Task, find
from m4.data.sets.declared.joins import Joins
from m4.data.sets.declared.points import SPLITS, Flow, Labels, Points, join, unknown
from m4.errors import DataError

FILE = "points.*"


def read(definition: Definition, root: Path, *, joins: Joins, flow: Flow) -> Points:
    """The points by subject and time. Raises DataError if there are none, or for damaged files."""
    given = {}
    if find(root, FILE):
        given[FILE] = _Asked(definition.labelled[0], root, joins, flow)
    for task in definition.labelled:
        if find(root, task.files):
            given[task.spec.name] = Labels(task, root, joins, flow, optional=True)
    if not given:
        wanted = ", ".join(dict.fromkeys(task.files for task in definition.labelled))
        inside = root / definition.folder
        hint = f"; try {inside}" if inside != root and inside.is_dir() else ""
        raise DataError(
            f"{root}: no label files ({wanted}) and no points.parquet or points.csv: who is asked,"
            f" and when?{hint}"
        )
    key_P, targets = join(given)
    if FILE in given:
        asked_P = ~np.isnan(targets.pop(FILE)[:, 0])
        flow["label rows at no point that is asked"] = int((~asked_P).sum())
        key_P, targets = key_P[asked_P], {name: v[asked_P] for name, v in targets.items()}
    flow["prediction points"] = len(key_P)
    if not len(key_P):
        raise DataError(f"{root}: no row of the {'points' if FILE in given else 'label'} files")
    for task in definition.tasks:
        targets.setdefault(task.spec.name, unknown(task, len(key_P)))
    split_P = np.full(len(key_P), SPLITS.index("new"), np.int8)
    return Points([*joins.ids], key_P["subject"], key_P["time"], split_P, targets)


class _Asked(Labels):
    """The rows of the points file; the value says that a point is asked."""

    def __init__(self, task: Task, root: Path, joins: Joins, flow: Flow):
        spec = dataclasses.replace(task.spec, name="points file")
        task = dataclasses.replace(task, spec=spec, files=FILE)
        super().__init__(task, root, joins, flow, optional=True)

    def values(self, table: arrow_files.Columns) -> np.ndarray:
        """f32[N, 1] of zeros."""
        return np.zeros((len(table), 1), np.float32)
