"""`groups/<split>.parquet`: which groups of people a record belongs to, beside the data.

A group column, `DataSpec.groups`, says of every record its category (sex, age band, kind of ICU,
site), or nothing where it is not known. Row i belongs to record i of the split. They judge a model
and are never its input: records, normalisers and the name of the folder know nothing of them, so
columns can be added to data on which a model was trained already. A source that should also be an
input is a feature of a modality as well. What programs write for nothing (`NOTHING`) is not known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m4.data.cohort import Example
from m4.errors import DataError
from m4.specs import DataSpec, text_problem

FOLDER = "groups"
UNKNOWN = ""
NOTHING = ("None", "nan", "NaN", "NaT", "<NA>", "NULL", "null", "unknown", "Unknown", "UNKNOWN")


def categories(spec: DataSpec, example: Example, where: str) -> tuple[str, ...]:
    """The category of an example in each column of the schema.

    Raises DataError, naming `where` and the column but no value, for what is no category.
    """
    found: Any = example.get("groups") or {}
    if not isinstance(found, Mapping):
        raise DataError(f"{where}: groups must be a dict by name")
    if unknown := sorted({*map(str, found)} - {*spec.groups}):
        raise DataError(f"{where}: {unknown} are no group columns of the data")
    return tuple(_category(found.get(name), f"{where}, group {name}") for name in spec.groups)


def _category(value: Any, where: str) -> str:
    if value is None or value in (UNKNOWN, *NOTHING):
        return UNKNOWN
    if wrong := text_problem(value):
        raise DataError(f"{where}: its category {wrong}")
    return str(value)


def write(folder: Path, split: str, spec: DataSpec, rows: Sequence[tuple[str, ...]]) -> None:
    """Writes the categories of a split, one row per record; nothing without group columns."""
    if not spec.groups:
        return
    columns = zip(*rows, strict=True)
    table = {n: pa.array(c, pa.string()) for n, c in zip(spec.groups, columns, strict=True)}
    (folder / FOLDER).mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / FOLDER / f"{split}.parquet")


def read(folder: Path, split: str, spec: DataSpec, rows: int) -> dict[str, np.ndarray]:
    """Group column -> category of every record of a split, str[N]; `UNKNOWN` where not known.

    Raises DataError for a file that does not fit the records.
    """
    if not spec.groups:
        return {}
    path = folder / FOLDER / f"{split}.parquet"
    try:
        table = pq.read_table(path)
        found = {name: np.array(table[name].to_pylist(), str) for name in spec.groups}
        found = {n: np.where(np.isin(c, NOTHING), UNKNOWN, c) for n, c in found.items()}  # of old
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: no readable groups; delete the folder to build it again") from (
            error
        )
    if any(column.shape != (rows,) for column in found.values()):
        raise DataError(f"{path}: has {len(table)} of {rows} rows; delete the folder")
    return found
