"""Damaged MEDS data sets: event, label and split files of Parquet, and the definition.

As in `bad_files`, what a reader may accept is then refused for its number of rows, exit 2.
"""

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.bad_files import BUILT, CONFIG, DAMAGES
from tests.faults.catalogue import NUMBER, TEXT, Case

SUBJECTS = 30
START = datetime.datetime(2150, 1, 1)
DEFINITION = """
folder = "ward"
[window]
hours = 24
[tasks.death]
kind = "binary"
labels = "labels"
[modalities.vitals]
kind = "series"
every = 6
features = ["HR"]
[modalities.drugs]
kind = "codes"
codes = "DRUG//*"
min_subjects = 1
vocab = 16
"""
EVENTS, LABELS, SPLITS = "data/0.parquet", "labels/0.parquet", "metadata/subject_splits.parquet"

Change = Callable[[pa.Table], pa.Table]


def cases() -> Iterator[Case]:
    """All of them."""
    for file in (EVENTS, LABELS, SPLITS):
        for damage in ("deleted", "a folder", "dangling link", "empty", "cut", "noise"):
            accepted = file == SPLITS and damage == "deleted"  # a hash splits then
            code, says = BUILT if accepted else (3, f"{Path(file).parent}|split")
            make = _made(lambda ward, f=file, d=damage: DAMAGES[d](ward / f, 0))
            yield Case(f"MEDS {file}: {damage}", make, code, (says,))
    for file, columns in TABLES.items():
        for name, change in columns.items():
            code, says = BUILT if (file, name) in ACCEPTED else (3, f"{Path(file).parent}")
            says = UNMATCHED.get(name, says) if file == EVENTS else says
            make = _made(lambda ward, f=file, c=change: _rewrite(ward / f, c))
            yield Case(f"MEDS {file}: {name}", make, code, (says,))
    for name, (old, new, says) in DEFINITIONS.items():
        text = DEFINITION.replace(old, new, 1) if old else new
        assert text != DEFINITION, name
        yield Case(f"MEDS definition: {name}", _made(definition=text), 2, says)


def write(ward: Path) -> None:
    """A sound data set of `SUBJECTS` subjects, each with a heart rate, a drug and a label."""
    rows = []
    for subject in range(SUBJECTS):
        rows.append((subject, START, "HR", 60.0 + subject))
        rows.append((subject, START + datetime.timedelta(hours=1), f"DRUG//{TEXT}", None))
    kinds = (pa.int64(), pa.timestamp("us"), pa.string(), pa.float32())
    names = ("subject_id", "time", "code", "numeric_value")
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    _write(ward / EVENTS, pa.table(dict(zip(names, columns, strict=True))))
    end = pa.array([START + datetime.timedelta(hours=24)] * SUBJECTS, pa.timestamp("us"))
    truth = pa.array([s % 2 == 0 for s in range(SUBJECTS)])
    ids = pa.array(range(SUBJECTS), pa.int64())
    labels = {"subject_id": ids, "prediction_time": end, "boolean_value": truth}
    _write(ward / LABELS, pa.table(labels))
    parts = [("train", "tuning", "held_out")[s % 3] for s in range(SUBJECTS)]
    _write(ward / SPLITS, pa.table({"subject_id": ids, "split": parts}))


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _rewrite(path: Path, change: Change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def _made(
    damage: Callable[[Path], None] = lambda ward: None, *, definition: str = DEFINITION
) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        write(folder / "raw/ward")
        damage(folder / "raw/ward")
        file = folder / "ward.toml"
        file.write_bytes(definition.encode("utf-8", "surrogateescape"))
        raw, built = str(folder / "raw"), str(folder / "built")
        options, select = {"file": str(file)}, "death/auroc"
        text = CONFIG.format(name="meds", built=built, raw=raw, options=options, select=select)
        (folder / "x.py").write_text(text)
        return [f"--config={folder / 'x.py'}", "--mode=check", f"--workdir={folder / 'w'}"]

    return make


def _drop(column: str) -> Change:
    return lambda table: table.drop_columns([column])


def _all(column: str, array: Callable[[int], pa.Array]) -> Change:
    """The column replaced by `array` of as many rows."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, array(len(table)))

    return change


def _constant(column: str, value, kind: pa.DataType | None = None) -> Change:
    return _all(column, lambda n: pa.array([value] * n, kind))


def _not_utf8(column: str) -> Change:
    raw = pa.array([b"\xff\xfe\xfa" + TEXT.encode()], pa.binary()).view(pa.string())
    return _all(column, lambda n: pa.concat_arrays([raw] * n))


def _none(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def _another(column: str, value) -> Change:
    """Every row again, with another value in one column."""
    return lambda table: pa.concat_tables(
        [table, _constant(column, value, table[column].type)(table)]
    )


NESTED = pa.list_(pa.int64())
WRONG = f"{TEXT} {NUMBER}"
FAR = datetime.datetime(9999, 12, 31)
TABLES: dict[str, dict[str, Change]] = {
    EVENTS: {
        "no rows": _none,
        "no subject_id": _drop("subject_id"),
        "no time": _drop("time"),
        "no code": _drop("code"),
        "no numeric_value": _drop("numeric_value"),
        "subjects are lists": _constant("subject_id", [1], NESTED),
        "subjects are dates": _constant("subject_id", START, pa.timestamp("us")),
        "subjects are fractions": _constant("subject_id", 0.5, pa.float64()),
        "subjects are null": _constant("subject_id", None, pa.int64()),
        "subjects are unknown": _constant("subject_id", 2**62, pa.int64()),
        "subjects are beyond int64": _constant("subject_id", 2**64 - 1, pa.uint64()),
        "times are texts": _constant("time", WRONG, pa.string()),
        "times are numbers": _constant("time", 5, pa.int64()),
        "times are lists": _constant("time", [5], NESTED),
        "times are null": _constant("time", None, pa.timestamp("us")),
        "times are far away": _constant("time", FAR, pa.timestamp("s")),
        "codes are numbers": _constant("code", 7, pa.int64()),
        "codes are lists": _constant("code", [7], NESTED),
        "codes are null": _constant("code", None, pa.string()),
        "codes are not UTF-8": _not_utf8("code"),
        "codes are empty": _constant("code", "", pa.string()),
        "codes are huge": _constant("code", f"DRUG//{TEXT * 20_000}", pa.large_string()),
        "numbers are texts": _constant("numeric_value", WRONG, pa.string()),
        "numbers are lists": _constant("numeric_value", [5], NESTED),
        "numbers are dates": _constant("numeric_value", START, pa.timestamp("us")),
        "numbers are infinite": _constant("numeric_value", float("inf"), pa.float32()),
        "numbers are null": _constant("numeric_value", None, pa.float32()),
    },
    LABELS: {
        "no rows": _none,
        "no subject_id": _drop("subject_id"),
        "no prediction_time": _drop("prediction_time"),
        "no value": _drop("boolean_value"),
        "subjects are texts": _constant("subject_id", WRONG, pa.string()),
        "subjects are lists": _constant("subject_id", [1], NESTED),
        "subjects are null": _constant("subject_id", None, pa.int64()),
        "times are texts": _constant("prediction_time", WRONG, pa.string()),
        "times are numbers": _constant("prediction_time", 5, pa.int64()),
        "times are null": _constant("prediction_time", None, pa.timestamp("us")),
        "values are texts": _constant("boolean_value", WRONG, pa.string()),
        "values are not UTF-8": _not_utf8("boolean_value"),
        "values are lists": _constant("boolean_value", [1], NESTED),
        "values are dates": _constant("boolean_value", START, pa.timestamp("us")),
        "values are null": _constant("boolean_value", None, pa.bool_()),
        "values are 0.5": _constant("boolean_value", 0.5, pa.float32()),
        "values are infinite": _constant("boolean_value", float("-inf"), pa.float32()),
        "two values for a point": _another("boolean_value", True),
    },
    SPLITS: {
        "no rows": _none,
        "no subject_id": _drop("subject_id"),
        "no split": _drop("split"),
        "splits are numbers": _constant("split", 1, pa.int64()),
        "splits are lists": _constant("split", [1], NESTED),
        "splits are null": _constant("split", None, pa.string()),
        "splits are not UTF-8": _not_utf8("split"),
        "one split": _constant("split", "train", pa.string()),
        "names of no split": _constant("split", WRONG, pa.string()),
        "subjects are lists": _constant("subject_id", [1], NESTED),
        "subjects are null": _constant("subject_id", None, pa.int64()),
        "a subject in two splits": _another("split", "train"),
    },
}
# Events without a number are counted; points have fewer inputs.
ACCEPTED = {
    (EVENTS, name)
    for name in (
        "no numeric_value",
        *(f"numbers are {what}" for what in ("infinite", "null")),
    )
}
# Events of nobody, in time for nobody, or of no modality: a modality that nobody has.
UNMATCHED = {
    "no rows": "no event with one of its codes",
    "subjects are null": "without a prediction point",
    "subjects are unknown": "no subject in 'subject_id'",
    "subjects are beyond int64": "is beyond 2",
    **{f"times are {what}": "in time for a prediction" for what in ("null", "far away")},
    **{
        f"codes are {what}": "no event with one of its codes"
        for what in ("numbers", "null", "empty", "huge")
    },
}
DEFINITIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no TOML": ("", "[[[", ("ward.toml",)),
    "empty": ("", "\n", ("tasks",)),
    "not UTF-8": ("", "\udcff\udcfe", ("ward.toml",)),
    "NUL": ("24", "2\x004", ("ward.toml",)),
    "a key twice": ("hours = 24", "hours = 24\nhours = 25", ("ward.toml",)),
    "unknown table": ("[window]", "[windows]", ("windows",)),
    "unknown key": ("hours = 24", "hour = 24", ("hour",)),
    "unknown kind": ('kind = "series"', 'kind = "serious"', ("kind",)),
    "unknown task kind": ('kind = "binary"', 'kind = "binray"', ("kind",)),
    "hours are a text": ("hours = 24", 'hours = "24"', ("hours",)),
    "hours are negative": ("hours = 24", "hours = -24", ("hours",)),
    "hours are nan": ("hours = 24", "hours = nan", ("hours",)),
    "hours are a list": ("hours = 24", "hours = [24]", ("hours",)),
    "no labels": ('labels = "labels"', "", ("labels",)),
    "no features": ('features = ["HR"]', "", ("features",)),
    "features are a number": ('features = ["HR"]', "features = 3", ("features",)),
    "a feature twice": ('features = ["HR"]', 'features = ["HR", "HR"]', ("HR",)),
    "an empty feature": ('features = ["HR"]', 'features = [""]', ("vitals",)),
    "every is 0": ("every = 6", "every = 0", ("every",)),
    "vocab is 0": ("vocab = 16", "vocab = 0", ("vocab",)),
    "vocab is a fraction": ("vocab = 16", "vocab = 1.5", ("vocab",)),
    "no codes": ('codes = "DRUG//*"', "", ("codes",)),
    "codes are no expression": ('codes = "DRUG//*"', 'codes = "re:([("', ("codes",)),
    "no tasks": ('[tasks.death]\nkind = "binary"\nlabels = "labels"\n', "", ("tasks",)),
    "folder is a number": ('folder = "ward"', "folder = 7", ("folder",)),
}
