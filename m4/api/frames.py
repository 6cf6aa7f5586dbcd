"""Data frames of pandas and polars, and whatever else speaks Arrow -> Arrow tables, and back.

Neither library is needed, nor imported before a frame of it is handed over or asked for.
"""

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m4 import atomic
from m4.errors import ConfigError, DataError

Kind = Literal["pandas", "polars", "arrow"]


def kind_of(frame: Any) -> Kind | None:
    """Which library a frame is of; None for what is no frame."""
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        return "pandas"
    if polars is not None and isinstance(frame, polars.DataFrame | polars.LazyFrame):
        return "polars"
    arrow = isinstance(frame, pa.Table | pa.RecordBatch) or hasattr(frame, "__arrow_c_stream__")
    return "arrow" if arrow else None


def to_arrow(frame: Any, name: str = "frame", *, only: Collection[str] | None = None) -> pa.Table:
    """A frame as an Arrow table; whole numbers that pandas made floats are whole again.

    Of the columns those in `only` are taken, as far as it has them.
    A named index of pandas becomes columns. Raises DataError, which quotes no value, for what is
    no frame, for two columns of one name, and for a column of values of several types.
    """
    kind = kind_of(frame)
    if kind is None:
        raise DataError(
            f"{name}: {type(frame).__name__} is no frame; give one of pandas, polars or pyarrow"
        )
    try:
        if kind == "pandas":
            named = any(level is not None for level in frame.index.names)
            table = _of_pandas(frame.reset_index() if named else frame, name, only)
        elif kind == "polars":
            table = (frame.collect() if hasattr(frame, "collect") else frame).to_arrow()
        else:
            table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as a table ({type(error).__name__})") from None
    if len({*table.column_names}) < table.num_columns:
        raise DataError(f"{name}: two columns have the same name")
    columns = {}
    for column in table.column_names:
        if only is not None and column not in only:
            continue
        try:
            columns[column] = _tidy(table[column])
        except pa.ArrowException:
            kind = table[column].type
            raise DataError(
                f"{name}: column {column!r} holds {kind}, expected plain values"
            ) from None
    return pa.table(columns) if columns else table


def from_arrow(table: pa.Table, kind: Kind) -> Any:
    """The table as a frame of a library. Raises ConfigError if that is not installed."""
    if kind not in get_args(Kind):
        raise ConfigError(f"frame={kind!r}: must be one of {', '.join(get_args(Kind))}")
    if kind == "arrow":
        return table
    try:
        if kind == "pandas":
            return table.to_pandas()
        import polars

        return polars.from_arrow(table)
    except ImportError:
        raise ConfigError(f"frame={kind!r}: {kind} is not installed") from None


def write_private(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file that only its owner can read, in a folder that is made if need be."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with atomic.replaced(path) as partial, open(os.open(partial, flags, 0o600), "wb") as file:
        pq.write_table(table, file)


def _of_pandas(frame: Any, name: str, only: Collection[str] | None) -> pa.Table:
    """Column by column, so that an error can name the column."""
    arrays, names = [], [str(column) for column in frame.columns]
    for place, column in enumerate(names):
        if only is not None and column not in only:
            arrays.append(pa.nulls(len(frame)))
            continue
        try:
            arrays.append(pa.Array.from_pandas(frame.iloc[:, place]))
        except (pa.ArrowException, TypeError, ValueError):
            raise DataError(f"{name}: column {column!r} holds values of several types") from None
    return pa.Table.from_arrays(arrays, names=names)


def _tidy(column: pa.ChunkedArray) -> pa.Array:
    """One array, decoded; floats that are whole numbers as such (pandas has no other with gaps)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no chunk, or of more than one array can hold
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.nulls(0, array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not pa.types.is_floating(array.type):
        return array
    array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    small = pc.fill_null(pc.less(pc.abs(array), float(1 << 53)), True)
    whole = pc.fill_null(pc.equal(array, pc.round(array)), True)
    if len(array) and pc.all(pc.and_(small, whole)).as_py():
        return array.cast(pa.int64())
    return array
