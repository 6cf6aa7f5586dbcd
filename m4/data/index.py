"""`index/<split>.parquet`: whose record is which, for predictions that others can join.

Written for data sets whose examples carry `key`: (subject, prediction time in microseconds since
1970 or None). Row i belongs to record i of the split; columns as in the MEDS label schema.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Key = tuple[int | str, int | None]
FOLDER = "index"


def write(folder: Path, split: str, keys: Sequence[Key]) -> None:
    """Writes the keys of a split, one per record."""
    subjects, times = zip(*keys, strict=True)
    whole = all(isinstance(subject, int) for subject in subjects)
    subject = pa.array(subjects, pa.int64()) if whole else pa.array(map(str, subjects))
    columns = {"subject_id": subject, "prediction_time": pa.array(times, pa.timestamp("us"))}
    table = pa.table(columns)
    (folder / FOLDER).mkdir(exist_ok=True)
    pq.write_table(table, folder / FOLDER / f"{split}.parquet")


def read(folder: Path, split: str) -> pa.Table | None:
    """The pyarrow table of a split, None for a data set without an index."""
    path = folder / FOLDER / f"{split}.parquet"
    return pq.read_table(path) if path.is_file() else None
