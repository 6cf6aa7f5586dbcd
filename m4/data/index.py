"""`index/<split>.parquet`: whose record is which, for predictions that others can join.

Written for data sets whose examples carry `key`: (subject, prediction time in microseconds since
1970 or None), and third, where that does not name it, the record's own identifier (of an ICU stay,
a breast). Row i belongs to record i of the split; columns as in the MEDS label schema, `record_id`.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Key = tuple[int | str, int | None] | tuple[int | str, int | None, int | str]
FOLDER = "index"
MEDS = ("subject_id", "prediction_time")  # columns of MEDS, in every index


def write(folder: Path, split: str, keys: Sequence[Key]) -> None:
    """Writes the keys of a split, one per record."""
    subjects, times, *records = zip(*keys, strict=True)
    columns = {
        "subject_id": _identifiers(subjects),
        "prediction_time": pa.array(times, pa.timestamp("us")),
    }
    if records:
        columns["record_id"] = _identifiers(records[0])
    table = pa.table(columns)
    (folder / FOLDER).mkdir(exist_ok=True)
    pq.write_table(table, folder / FOLDER / f"{split}.parquet")


def _identifiers(found: Sequence[int | str]) -> pa.Array:
    whole = all(isinstance(one, int) for one in found)
    return pa.array(found, pa.int64()) if whole else pa.array(map(str, found), pa.string())


def read(folder: Path, split: str) -> pa.Table | None:
    """The pyarrow table of a split, None for a data set without an index."""
    path = folder / FOLDER / f"{split}.parquet"
    return pq.read_table(path) if path.is_file() else None
