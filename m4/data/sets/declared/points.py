"""Who is asked what, when: the label files of all tasks and the splits, as one table of points.

A point is one (subject, prediction time) and becomes one record. Letters: P points, N label rows.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4.data import split
from m4.data.cohort import hash64
from m4.data.identifiers import Forms
from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import Definition, Splits, Task, find
from m4.data.sets.declared.joins import ALWAYS, Joins
from m4.errors import DataError

SPLIT_FILE = "metadata/subject_splits.parquet"
SPLITS = ("train", "val", "test", "new")  # new: what a trained model is asked, see `asked.py`
OTHER_COLUMNS = {  # where the MEDS label schema may keep the same kind of label
    "boolean_value": ("integer_value",),
    "float_value": ("integer_value",),
    "categorical_value": ("integer_value", "boolean_value"),
}
TRUE, FALSE = ("true", "yes", "t", "y"), ("false", "no", "f", "n")
KEY = [("subject", np.int32), ("time", np.int64)]
Flow = Counter[str]


@dataclasses.dataclass(frozen=True)
class Points:
    """Sorted by split, subject and time."""

    ids: list[int | str]  # of the subjects
    subject_P: np.ndarray  # i32, index into `ids`
    time_P: np.ndarray  # i64 microseconds, ALWAYS without a prediction time
    split_P: np.ndarray  # i8, index into `SPLITS`
    targets: dict[str, np.ndarray]  # task -> f32[P, C], NaN where unknown

    def only(self, keep_P: np.ndarray) -> "Points":
        """Some of the points, of the same subjects."""
        targets = {name: value_PC[keep_P] for name, value_PC in self.targets.items()}
        arrays = (self.subject_P[keep_P], self.time_P[keep_P], self.split_P[keep_P])
        return Points(self.ids, *arrays, targets)


def read(definition: Definition, root: Path, *, seed: int, joins: Joins, flow: Flow) -> Points:
    """All label files, joined and split. Raises DataError for files that can't be used."""
    key_P, targets = join({t.spec.name: Labels(t, root, joins, flow) for t in definition.labelled})
    flow["prediction points"] = len(key_P)
    if not len(key_P):
        raise DataError(f"{root}: the label files have no rows")
    names = [*joins.ids]
    for task in definition.tasks:
        targets.setdefault(task.spec.name, unknown(task, len(key_P)))
    places = assign(names, definition.splits, root, seed=seed, flow=flow)
    split_P = places[key_P["subject"]]
    flow["points of subjects in no split"] = int((split_P < 0).sum())
    order = np.lexsort((key_P["time"], key_P["subject"], split_P))
    order = order[split_P[order] >= 0]
    return Points(
        names,
        key_P["subject"][order],
        key_P["time"][order],
        split_P[order],
        {name: values[order] for name, values in targets.items()},
    )


def join(found: Mapping[str, "Labels"]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Every key of some label files once, sorted, and each file's values there, f32[P, C]."""
    key_N = np.concatenate([labels.key_N for labels in found.values()])
    key_P, point_N = np.unique(key_N, return_inverse=True)
    targets, start = {}, 0
    for name, labels in found.items():
        values = np.full((len(key_P), labels.value_NC.shape[1]), np.nan, np.float32)
        own = point_N[start : start + len(labels.key_N)]
        start += len(own)
        values[own] = labels.value_NC
        targets[name] = values
    return key_P, targets


def unknown(task: Task, count: int) -> np.ndarray:
    """f32[count, C] of a task without labels."""
    return np.full((count, max(1, len(task.columns))), np.nan, np.float32)


def patient(subject: int | str) -> int:
    """The subject as the integer that a record holds; text is hashed."""
    return subject if isinstance(subject, int) else hash64(subject) >> 1


class Labels:
    """The rows of one task: key (subject, time) and values; duplicates are gone."""

    def __init__(self, task: Task, root: Path, joins: Joins, flow: Flow, *, optional: bool = False):
        """Reads the files; `joins` takes in their subjects. DataError for files of no use.

        With `optional` no label need be known, and a column that is absent has none.
        """
        self.task, self.name, self.flow, self.optional = task, task.spec.name, flow, optional
        paths = find(root, task.files)
        if not paths:
            raise DataError(f"{root / task.files}: no label files of task {self.name}")
        if not task.subject:
            joins.require_one(paths)
        keys, values, places = [], [], []
        for number, path in enumerate(paths):
            for table in arrow_files.tables(path, header=task.header):
                subject_N, time_N = self._keys(table, joins)
                value_NC = self.values(table)
                use = subject_N >= 0
                flow[f"{self.name}: label rows"] += len(use)
                flow[f"{self.name}: label rows without a subject or time"] += int((~use).sum())
                key_N = np.empty(len(use), KEY)
                key_N["subject"], key_N["time"] = subject_N, time_N
                place_N = np.stack([np.full(len(use), number), table.first + np.arange(len(use))])
                keys.append(key_N[use])
                values.append(value_NC[use])
                places.append(place_N[:, use])
        if keys:
            self._unique(np.concatenate(keys), np.concatenate(values), np.hstack(places), paths)
        elif optional:
            self.key_N, self.value_NC = np.empty(0, KEY), unknown(task, 0)
        else:
            raise DataError(f"{paths[0]}: has no rows")

    def _unique(self, key_N, value_NC, place_2N, paths) -> None:
        order = np.argsort(key_N, order=("subject", "time"), kind="stable")
        key_N, value_NC = key_N[order], value_NC[order]
        again_N = np.zeros(len(order), bool)
        again_N[1:] = key_N[1:] == key_N[:-1]
        same = np.isclose(value_NC[1:], value_NC[:-1], rtol=0, equal_nan=True).all(axis=1)
        wrong = again_N[1:] if self.task.unique else again_N[1:] & ~same
        if wrong.any():
            file, line = place_2N[:, order[wrong.argmax() + 1]]
            what = "second" if self.task.unique else "second, different"
            raise DataError(
                f"{paths[file]}, row {line + 1}: a {what} label of task {self.name}"
                " for the same subject and prediction time"
            )
        self.flow[f"{self.name}: duplicate label rows"] = int(again_N.sum())
        self.key_N, self.value_NC = key_N[~again_N], value_NC[~again_N]
        no_label_N = np.isnan(self.value_NC).all(axis=1)
        self.flow[f"{self.name}: points without a label value"] = int(no_label_N.sum())
        if no_label_N.all() and not self.optional:
            spec, columns = self.task.spec, ", ".join(self.task.columns)
            classes = f"; classes are {', '.join(spec.labels)}" if spec.kind == "multiclass" else ""
            raise DataError(
                f"{paths[0]}: column {columns} has no usable label of task {self.name}{classes}"
            )

    def _keys(self, table: arrow_files.Columns, joins: Joins) -> tuple[np.ndarray, np.ndarray]:
        if self.task.subject:
            subject_N = joins.add(table, self.task.subject)
        else:
            rows, ids = joins.numbers(table), joins.ids
            subject_N = np.array([ids.setdefault(i, len(ids)) for i in rows], np.int32)
        if not self.task.time:
            return subject_N, np.full(len(table), ALWAYS)
        time_N = joins.times(table, self.task.time, up=False)
        return np.where(time_N == arrow_files.NEVER, -1, subject_N), time_N

    def values(self, table: arrow_files.Columns) -> np.ndarray:
        """f32[N, C] of a batch of rows, NaN where unknown."""
        kind, spec = self.task.spec.kind, self.task.spec
        if kind == "multiclass":
            return self._class_index(table, self.task.columns[0])
        value_NC = np.stack([self._numbers(table, name) for name in self.task.columns], axis=1)
        wrong_N, what = np.isinf(value_NC).any(axis=1), "an infinite label"
        if kind in ("binary", "multilabel"):
            wrong_N = (~np.isnan(value_NC) & ~np.isin(value_NC, (0, 1))).any(axis=1)
            what = f"a label of task {spec.name} is neither 0 nor 1"
        if wrong_N.any():
            raise DataError(f"{table.path}, row {table.first + wrong_N.argmax() + 1}: {what}")
        if kind == "survival" and self.optional:  # half a label is none
            value_NC[np.isnan(value_NC).any(axis=1)] = np.nan
        return value_NC.astype(np.float32)

    def _column(self, table: arrow_files.Columns, name: str) -> str:
        """The column, or the one that MEDS may have instead; "" if it may be absent and is."""
        choices = (name, *OTHER_COLUMNS.get(name, ()))
        found = next((n for n in choices if table.has(n)), name)
        if self.optional and not table.has(found):
            self.flow[f"{self.name}: label rows without a column {name}"] += len(table)
            return ""
        return found

    def _numbers(self, table: arrow_files.Columns, name: str) -> np.ndarray:
        """f64[N] of a column; words for yes and no count where the task is binary."""
        name = self._column(table, name)
        if not name:
            return np.full(len(table), np.nan)
        array = table.raw(name)
        if self.task.spec.kind in ("binary", "multilabel") and arrow_files.is_text(array.type):
            array = pc.utf8_lower(pc.utf8_trim_whitespace(array.cast(pa.large_string())))
            for words, number in ((TRUE, "1"), (FALSE, "0")):
                given = pc.is_in(array, value_set=pa.array(words, pa.large_string()))
                array = pc.if_else(given, pa.scalar(number, pa.large_string()), array)
        batch = pa.record_batch([array], names=[name])
        return arrow_files.Columns(batch, table.path, table.first).numbers(name)

    def _class_index(self, table: arrow_files.Columns, name: str) -> np.ndarray:
        """f32[N, 1] of a column of classes."""
        name = self._column(table, name)
        if not name:
            return np.full((len(table), 1), np.nan, np.float32)
        array = table.raw(name)
        whole = pa.types.is_floating(array.type)
        text = pc.utf8_trim_whitespace(_whole_numbers(array) if whole else table.strings(name))
        text = pc.replace_substring_regex(text, r"^(-?\d+)\.0+$", r"\1")  # 3.0 is class 3
        classes = pa.array(self.task.spec.labels, pa.large_string())
        index = pc.index_in(text, value_set=classes)
        outside = pc.and_(pc.not_equal(text, ""), index.is_null())
        self.flow[f"{self.name}: labels of no listed class"] += pc.sum(outside).as_py() or 0
        return index.cast(pa.float32()).to_numpy(zero_copy_only=False)[:, None]


def _whole_numbers(array: pa.Array) -> pa.Array:
    """Floats as text: whole ones without a fraction, NaN as unknown, all else as it is."""
    value = array.cast(pa.float64())
    unknown = pc.or_kleene(pc.is_nan(value), pc.is_null(value))
    whole = pc.and_(pc.equal(pc.floor(value), value), pc.less(pc.abs(value), 2.0**53))
    whole = pc.fill_null(whole, False)
    number = pc.if_else(whole, value, 0.0).cast(pa.int64()).cast(pa.large_string())
    text = pc.if_else(whole, number, array.cast(pa.large_string()))
    return pc.if_else(unknown, pa.scalar(None, pa.large_string()), text)


def assign(
    ids: list[int | str], splits: Splits, root: Path, *, seed: int, flow: Flow
) -> np.ndarray:
    """Per subject the index of its split in `SPLITS`, -1 for none; i8[subjects]."""
    path = root / SPLIT_FILE
    source = splits.source
    if source == "auto":
        source = "meds" if path.exists() or path.is_symlink() else "hash"
        if source == "hash":
            flow[f"no {SPLIT_FILE}: subjects split by a keyed hash"] = len(ids)
    if source == "meds":
        names = _published(path, splits, ids, seed=seed)
    elif source == "all":
        names = ["train"] * len(ids)
    elif source == "hash":
        names = [split.assign(i, dict(splits.fractions), seed) for i in ids]
    else:
        about = {"fold": splits.fold, "num_folds": splits.num_folds, "val": splits.val_fraction}
        names = [split.of_fold(i, seed, **about) for i in ids]
    return np.array([SPLITS.index(name) if name else -1 for name in names], np.int8)


def _rest(subject: int | str, splits: Splits, seed: int) -> str:
    parts = {"train": 1 - splits.val_fraction, "val": splits.val_fraction}
    return split.assign(f"{subject} of the rest", parts, seed)


def _published(path: Path, splits: Splits, ids: list, *, seed: int) -> list[str | None]:
    """Splits of a MEDS data set; without validation subjects some training subjects become them."""
    if not path.is_file():
        raise DataError(f"{path}: is missing; splits.from = 'hash' or 'folds' does without")
    own, found, forms = {name: part for part, name in splits.names}, {}, Forms()
    for one in ids:
        forms.keep(one)
    for table in arrow_files.tables(path):
        subjects, place_N = table.identifiers("subject_id", forms.check)
        names = table.strings("split").to_pylist()
        for row, (place, name) in enumerate(zip(place_N, names, strict=True)):
            part = own.get(name)
            if place >= 0 and found.setdefault(subjects[place], part) != part:
                raise DataError(f"{path}, row {table.first + row + 1}: a subject in two splits")
    names = [found.get(i) for i in ids]
    if "val" not in names:
        names = [
            _rest(i, splits, seed) if part == "train" else part
            for i, part in zip(ids, names, strict=True)
        ]
    for part, name in splits.names:
        if part not in names:
            raise DataError(f"{path}: no labelled subject is in split {name!r} (for {part})")
    return names
