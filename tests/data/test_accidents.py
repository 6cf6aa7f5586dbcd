"""Values and names of a type that lets an accident pass: fractions as classes, wrong seconds."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from m4.data import build, fake
from m4.data.sets.declared import arrow_files, survey
from m4.data.sets.declared.points import Labels
from m4.errors import ConfigError, DataError
from m4.modes import predict
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VITALS = (ModalitySpec("vitals", "table", ("hr",)),)


def columns(**arrays):
    batch = pa.record_batch([*arrays.values()], names=[*arrays])
    return arrow_files.Columns(batch, Path("x.parquet"), 10)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.large_string()])
def test_a_fraction_is_no_class_whatever_the_column(kind):
    labels = object.__new__(Labels)
    spec = TaskSpec("k", "multiclass", dim=3, labels=("0", "1", "2"))
    labels.task, labels.name = SimpleNamespace(spec=spec, columns=("y",)), "k"
    labels.optional, labels.flow = False, Counter()
    values = [0.0, 1.9, 2.5, -0.7, 2.0, None, float("inf"), 1e300]
    array = pa.array([str(v) if v is not None else "" for v in values], pa.large_string())
    if pa.types.is_floating(kind):
        array = pa.array([*values[:5], float("nan"), *values[6:]], pa.float64()).cast(kind)
    found = labels.values(columns(y=array)).ravel()
    np.testing.assert_array_equal(found, [0, *[np.nan] * 3, 2, *[np.nan] * 3])
    assert labels.flow["k: labels of no listed class"] == 5


@pytest.mark.parametrize(("unit", "ticks"), [("s", 16 * 10**14), ("ms", 10**17), ("s", -(10**14))])
def test_times_that_no_computer_has_are_refused_with_their_row(unit, ticks):
    array = pa.array([0, None, ticks], pa.int64()).cast(pa.timestamp(unit))
    with pytest.raises(DataError, match=r"x\.parquet, row 13: 't' is no time .* wrong unit"):
        columns(t=array).times("t", up=False)
    found, _ = columns(t=array[:2]).times("t", up=False)
    assert found[0] == 0


CLASHES = [
    [TaskSpec("prediction_time", "binary")],
    [TaskSpec("subject_id", "regression")],
    [TaskSpec("x", "multilabel", dim=2, labels=("a", "b")), TaskSpec("x-a", "binary")],
    [TaskSpec("x", "multilabel", dim=2, labels=("b", "b/label"))],
    [TaskSpec("x", "multiclass", dim=2, labels=("no", "label"))],
]


@pytest.mark.parametrize("tasks", CLASHES, ids=lambda tasks: tasks[0].name)
def test_two_outputs_are_never_one_column_or_file(tasks):
    with pytest.raises(ValueError, match="predictions would have two"):
        DataSpec(VITALS, tuple(tasks))
    DataSpec(VITALS, (TaskSpec("x", "multilabel", dim=2, labels=("a", "b")),))


def test_groups_decide_the_folder_where_one_is_left_out():
    one, other = ({"declared": {"groups": {"site": c}}, "name": "x"} for c in "ab")
    assert build.fingerprint(one, {}) == build.fingerprint(other, {})
    left = {"leave_out": "site=North"}
    assert build.fingerprint(one | left, {}) != build.fingerprint(other | left, {})


def test_damaged_label_files_and_wrong_numbers_are_one_line(tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match=r"labels\.parquet: cannot be read as Parquet"):
        survey.labels(tmp_path)
    for more in ("--seed=-1", "--patients=0"):
        with pytest.raises(ConfigError, match="--seed: from 0"):
            fake.main(["adni", str(tmp_path / "raw"), more])


def test_classes_of_float32_are_called_as_they_print():
    labels = object.__new__(Labels)
    spec = TaskSpec("k", "multiclass", dim=2, labels=("0.1", "2"))
    labels.task, labels.name = SimpleNamespace(spec=spec, columns=("y",)), "k"
    labels.optional, labels.flow = False, Counter()
    array = pa.array([0.1, 2.0], pa.float64()).cast(pa.float32())
    assert labels.values(columns(y=array)).ravel().tolist() == [0, 1]


@pytest.mark.parametrize("name", ["row", "patient"])
def test_a_task_takes_no_key_of_the_table_of_predictions(tmp_path, name):
    spec = DataSpec(VITALS, (TaskSpec(name, "binary"),))
    uid, value = np.arange(3), np.array([[[0.1], [0.2], [0.3]]], np.float32)
    found = SimpleNamespace(uid=uid, patient=uid + 7, prediction={name: value})
    table = predict._table(found, spec, tmp_path, {})
    assert table["row"].to_pylist() == [0, 1, 2]
    assert not {*table["patient"].to_pylist()} & {0.1, 0.2, 0.3, 7, 8, 9}
    assert table[f"{name}/predicted"].to_pylist() == pytest.approx([0.1, 0.2, 0.3])
