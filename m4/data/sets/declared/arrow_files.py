"""Parquet and CSV files in batches, and their columns as NumPy, whatever types they came in.

A wrong file ends in one DataError that names the file, the column and, where there is one, the
row (counted from 1, without the header), and never quotes a value.
"""

import codecs
import contextlib
import csv
import io
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from m4 import regular
from m4.data import csv_files, identifiers
from m4.errors import DataError

BATCH = 1 << 16  # rows
BYTES = 1 << 27  # of a batch of Parquet, but for a single row that has more
CODED = 1 << 23  # bytes of a column in a row group, up to which its texts are read as numbers
BLOCK = 1 << 25  # bytes of CSV, also the longest row: a note of some millions of words
CELLS = 1 << 22  # that are compared at once
NEVER = np.iinfo(np.int64).min  # stands for no time
SEPARATORS = {";": "semicolons", "\t": "tabs"}  # of files that are no comma-separated ones
MICROSECONDS = {"D": 86_400_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}
KINDS = pa.types
NUMERIC = (KINDS.is_null, KINDS.is_boolean, KINDS.is_integer, KINDS.is_floating, KINDS.is_decimal)


class NotCommas(DataError):
    """A file of columns that something else than a comma separates."""


def tables(
    path: Path, *, header: str = "names", only: Sequence[str] | None = None
) -> Iterator["Columns"]:
    """A file in batches of bounded size; columns of a CSV file are strings.

    Of a Parquet file the columns in `only` are read, as far as it has them.

    Raises:
      DataError: a file that is unreadable, cut short or malformed.
    """
    rows = 0
    try:
        parquet = path.name.endswith(".parquet")
        for batch in _parquet(path, only) if parquet else _csv(path, header):
            yield Columns(batch, path, rows)
            rows += batch.num_rows
    except (pa.ArrowException, UnicodeDecodeError, *csv_files.UNREADABLE) as error:
        raise DataError(
            f"{path}: cut short, corrupt or malformed after row {rows} ({csv_files.reason(error)})"
        ) from None


class Columns:
    """The columns of one batch by name, with errors that name the file and row."""

    def __init__(self, batch: pa.RecordBatch, path: Path, first_row: int):
        """`first_row`: rows of the file before this batch."""
        self._batch, self.path, self.first = batch, path, first_row
        self._place = {name: i for i, name in enumerate(batch.schema.names)}

    def __len__(self) -> int:
        return self._batch.num_rows

    def names(self) -> list[str]:
        """All columns."""
        return self._batch.schema.names

    def has(self, name: str) -> bool:
        """Whether the file has the column."""
        return bool(name) and name in self._place

    def raw(self, name: str) -> pa.Array:
        """The column, decoded if it is dictionary-encoded. DataError if absent or not UTF-8."""
        if not self.has(name):
            raise DataError(f"{self.path}: has no column {name!r}")
        array = self._batch.column(self._place[name])
        try:
            array.validate(full=True)  # Parquet does not promise that its strings are UTF-8
        except pa.ArrowInvalid:
            raise DataError(
                f"{self.path}: column {name!r} is not UTF-8 after row {self.first}"
            ) from None
        return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array

    @contextlib.contextmanager
    def _read_as(self, wanted: str, name: str) -> Iterator[None]:
        """What Arrow cannot make of a column ends in one line."""
        try:
            yield
        except MemoryError:
            raise
        except (pa.ArrowException, ValueError, OverflowError) as error:
            kind = self._batch.column(self._place[name]).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            raise DataError(
                f"{self.path}: column {name!r} holds {kind} that cannot be read as {wanted} after"
                f" row {self.first} ({type(error).__name__})"
            ) from None

    def numbers(self, name: str) -> np.ndarray:
        """float64[n], NaN where null."""
        with self._read_as("numbers", name):
            return self._numbers(name)

    def _numbers(self, name: str) -> np.ndarray:
        array = self.raw(name)
        if is_text(array.type):
            array, row = _cast(self._text(array), pa.float64())
            if array is None:
                raise DataError(
                    f"{self.path}, row {self.first + row + 1}: {name!r} is not a number"
                )
        elif any(is_kind(array.type) for is_kind in NUMERIC):
            array = array.cast(pa.float64(), safe=False)
        else:
            raise DataError(f"{self.path}: column {name!r} holds {array.type}, expected numbers")
        return pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False)

    def times(self, name: str, *, up: bool) -> tuple[np.ndarray, str | None]:
        """Microseconds since 1970, int64[n], `NEVER` where null, and the times' zone.

        Nanoseconds are rounded `up`. The zone is "" of times without, None if there is no time;
        times with one are those of UTC.
        """
        with self._read_as("times", name):
            return self._times(name, up=up)

    def _times(self, name: str, *, up: bool) -> tuple[np.ndarray, str | None]:
        array = self.raw(name)
        kind = array.type
        if is_text(kind):
            array = self._text_times(array, name)
        elif pa.types.is_date32(kind):
            array = array.cast(pa.int32())  # days, of which there are more than those of timestamps
        elif pa.types.is_date(kind) or pa.types.is_null(kind):
            array = array.cast(pa.timestamp("us"))
        elif not pa.types.is_timestamp(kind):
            raise DataError(f"{self.path}: column {name!r} holds {kind}, expected a timestamp")
        unit, zone = getattr(array.type, "unit", "D"), getattr(array.type, "tz", None) or ""
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        ticks = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        if unit == "ns":
            micro = -(-ticks // 1000) if up else ticks // 1000
        else:
            most = (np.iinfo(np.int64).max - 1) // MICROSECONDS[unit]
            beyond = valid & ((ticks > most) | (ticks < -most))
            if beyond.any():
                raise DataError(
                    f"{self.path}, row {self.first + int(beyond.argmax()) + 1}: {name!r} is no time"
                    f" that can be: a wrong unit? The column says {kind}"
                )
            micro = ticks * MICROSECONDS[unit]
        return np.where(valid, micro, NEVER), zone if valid.any() else None

    def strings(self, name: str) -> pa.Array:
        """The column as strings, of whatever type it was; null stays null."""
        array = self.raw(name)
        if not is_text(array.type) and pa.types.is_nested(array.type):
            raise DataError(f"{self.path}: column {name!r} holds {array.type}, expected strings")
        with self._read_as("text", name):
            return array.cast(pa.large_string())

    def identifiers(self, name: str, check: identifiers.Check) -> tuple[list, np.ndarray]:
        """The different identifiers in canonical form, and which of them each row has, i64[n].

        Of a row without one that is -1. What `check` raises is told with the row, as is what
        is no identifier.
        """
        array = self.raw(name)
        if pa.types.is_nested(array.type):
            raise DataError(
                f"{self.path}: column {name!r} holds {array.type}, expected identifiers"
            )
        text = array.cast(pa.large_string()) if is_text(array.type) else array
        with self._read_as("identifiers", name):
            coded = text.dictionary_encode()
        found: dict[int | str, int] = {}
        places = [
            -1 if one is None else found.setdefault(one, len(found))
            for one in identifiers.of_column(coded, self.path, name, self.first, check)
        ]
        index = pc.fill_null(coded.indices, len(places)).to_numpy(zero_copy_only=False)
        return [*found], np.array([*places, -1])[index]

    def digests(self, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """int64[n] of some rows: the same for rows that are alike in these columns.

        Others have another, but for one chance in 2^64. They hold for this process alone.
        """
        nothing, found = pa.scalar(b"", pa.large_binary()), np.empty(len(rows), np.int64)
        step = max(1, CELLS // max(1, len(names)))
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            cells = [self._cells(name, chosen) for name in names]
            joined = pc.binary_join_element_wise(*cells, nothing)
            found[start : start + step] = [*map(hash, joined.to_pylist())]
        return found

    def _cells(self, name: str, rows: np.ndarray) -> pa.Array:
        """Some cells of a column as bytes."""
        with self._read_as("values", name):
            return _told(_bytes(self._batch.column(self._place[name]).take(pa.array(rows))))

    def _text(self, array: pa.Array) -> pa.Array:
        """Text without blanks around it, null where it says that there is none."""
        text = pc.utf8_trim_whitespace(array.cast(pa.large_string()))
        known = pc.invert(
            pc.is_in(text, value_set=pa.array(identifiers.MISSING, pa.large_string()))
        )
        return pc.if_else(known, text, None)

    def _text_times(self, array: pa.Array, name: str) -> pa.Array:
        """Text as times, either all with a zone or all without."""
        text = self._text(array)
        found, row = _cast(text, pa.timestamp("us"))
        if found is not None:
            return found
        zoned = pc.replace_substring_regex(text, r"\s*(?:UTC|GMT)$", "Z")
        zoned = pc.replace_substring_regex(zoned, r"\s+([+-][0-9:]+)$", r"\1")
        found, other = _cast(zoned, pa.timestamp("us", "UTC"))
        if found is not None:
            return found
        row, what = max(row, other), "is not a time"
        if _cast(text.slice(row, 1), pa.timestamp("us"))[0] is not None:
            what = "has no zone, the times before it have one"
        elif _cast(zoned.slice(row, 1), pa.timestamp("us", "UTC"))[0] is not None:
            what = "has a zone, the times before it have none"
        raise DataError(f"{self.path}, row {self.first + row + 1}: {name!r} {what}")


def _cast(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array | None, int]:
    """The array as another type, or None and the first row that is none."""
    try:
        return array.cast(kind), -1
    except pa.ArrowInvalid:
        if len(array) == 1:
            return None, 0
    half = len(array) // 2
    found, row = _cast(array.slice(0, half), kind)
    return (None, row) if found is None else (None, half + _cast(array.slice(half), kind)[1])


def _bytes(array: pa.Array) -> pa.Array:
    """Cells of whatever type as bytes that tell them apart."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        return array.cast(pa.large_binary())  # which need not be UTF-8
    try:
        return array.cast(pa.large_string()).cast(pa.large_binary())
    except pa.ArrowException:
        cells = [None if cell is None else repr(cell).encode() for cell in array.to_pylist()]
        return pa.array(cells, pa.large_binary())


def _told(cells: pa.Array) -> pa.Array:
    """Each cell with its length in front, a null as a mark: joined they fall apart in one way."""
    length = pc.binary_length(cells).cast(pa.large_string()).cast(pa.large_binary())
    told = pc.binary_join_element_wise(length, cells, pa.scalar(b":", pa.large_binary()))
    return pc.fill_null(told, b"-")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    view = getattr(pa.types, "is_string_view", lambda _: False)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind)


def _parquet(path: Path, only: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with regular.opened(path) as source, pq.ParquetFile(source) as file:
        csv_files.require_few(path, file.metadata.num_columns)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two columns have the same name")
        names = [n for n in names if only is None or n in only]
        plan = _planned(file, {*names})
        for (rows, coded), groups in itertools.groupby(plan, operator.itemgetter(0, 1)):
            part = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=[*coded])
            own = [group for _, _, group in groups]
            for batch in part.iter_batches(batch_size=rows, row_groups=own, columns=names):
                yield from _pieces(batch)


def _planned(file: pq.ParquetFile, names: set[str]) -> Iterator[tuple[int, tuple[str, ...], int]]:
    """(rows of a batch, columns whose texts are read as numbers, row group) of a Parquet file.

    A batch has at most `BYTES`, by what the file says of its columns. That does not say how long
    texts are which are kept once for many rows, so these stay numbers until `_pieces` has counted.
    """
    leaves, schema = [], file.schema_arrow
    for i in range(file.metadata.num_columns):
        leaf = file.schema.column(i)
        parts = leaf.path.split(".")
        top = next((p for k in range(len(parts)) if (p := ".".join(parts[: k + 1])) in names), None)
        if top is not None:
            text = leaf.physical_type == "BYTE_ARRAY" and _is_plain(schema.field(top).type)
            leaves.append((i, leaf.path if text else "", max(8, leaf.length)))
    for number in range(file.metadata.num_row_groups):
        group, size, coded = file.metadata.row_group(number), 1, []
        for i, path, width in leaves:
            column = group.column(i)
            own = column.total_uncompressed_size
            size += max(own, column.num_values * width)
            if path and own <= CODED:
                coded.append(path)
        rows = max(1, min(BATCH, BYTES * group.num_rows // size))
        yield 1 << rows.bit_length() - 1, tuple(coded), number


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a type is made of Arrow's own ones alone."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return not isinstance(kind, pa.BaseExtensionType) and all(map(_is_plain, inner))


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in parts of at most `BYTES` of text each, or of one row."""
    end_N = np.cumsum(sum(map(_lengths, batch.columns), np.zeros(len(batch), np.int64)))
    start = 0
    while start < len(batch):
        before = end_N[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(end_N, before + BYTES, "right")))
        yield batch.slice(start, stop - start)
        start = stop


def _lengths(array: pa.Array) -> np.ndarray:
    """int64[n]: bytes of the texts of each cell that are read as numbers."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        found = pc.binary_length(array.dictionary).cast(pa.int64()).take(array.indices)
        return pc.fill_null(found, 0).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(kind):
        return sum(map(_lengths, array.flatten()), np.zeros(len(array), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        end_n = np.append(0, np.cumsum(_lengths(array.values)))
        return np.diff(end_n[array.offsets.to_numpy()])
    return np.zeros(len(array), np.int64)


def _csv(path: Path, header: str) -> Iterator[pa.RecordBatch]:
    with contextlib.closing(Checked(path)) as stream:
        head = re.split(rb"[\r\n]", stream.read(BLOCK), maxsplit=1)
        if len(head[0]) >= BLOCK:
            raise DataError(f"{path}: its first line is longer than {BLOCK:,} bytes, the limit")
        csv_files.require_few(path, head[0].count(b",") + 1)
        first = head[0].decode("utf-8-sig")
    if not first.strip():
        raise DataError(f"{path}: is empty")
    try:
        names = [name.strip() for name in next(csv.reader([first]))]
    except csv.Error as error:
        raise DataError(f"{path}, line 1: is no header ({type(error).__name__})") from None
    for mark, called in SEPARATORS.items():
        if header == "names" and all(mark in name for name in names):  # the comma is in numbers
            raise NotCommas(
                f"{path}: is separated by {called}; save it with commas between its columns and a"
                " point in its numbers"
            )
    if header == "positions":
        names = [str(i) for i in range(len(names))]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name")
    rows: list[int] = []

    def refuse(row: Any) -> str:
        rows.append(row.number)
        return "error"

    read = arrow_csv.ReadOptions(
        use_threads=False, block_size=BLOCK, column_names=names, skip_rows=1
    )
    one = len(names) == 1  # column: there an empty line is a row, whose cell is empty
    parse = arrow_csv.ParseOptions(
        newlines_in_values=True, ignore_empty_lines=not one, invalid_row_handler=refuse
    )
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.large_string()),
        null_values=[""],
        strings_can_be_null=one,
        quoted_strings_can_be_null=False,
    )
    with contextlib.closing(Checked(path)) as stream:
        try:
            batches = arrow_csv.open_csv(pa.PythonFile(stream, "r"), read, parse, convert)
            yield from _without_last_lines(batches) if one else batches
        except pa.ArrowInvalid as error:
            if "straddl" in str(error):
                raise DataError(
                    f"{path}: a row is longer than {BLOCK:,} bytes, the limit"
                ) from None
            if rows and rows[0]:
                raise DataError(
                    f"{path}, line {rows[0]}: not {len(names)} columns like the header"
                ) from None
            raise


def _without_last_lines(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of one column, whose nulls are empty lines: those at the end of a file are none."""
    waiting = 0
    for batch in batches:
        cells = batch.column(0)
        filled = np.flatnonzero(cells.is_valid().to_numpy(zero_copy_only=False))
        last = filled[-1] + 1 if len(filled) else 0
        if last:
            both = pa.concat_arrays([pa.nulls(waiting, cells.type), cells.slice(0, last)])
            yield pa.record_batch([pc.fill_null(both, "")], names=batch.schema.names)
            waiting = 0
        waiting += len(batch) - last


class Checked:
    """The decompressed bytes of a file; NUL bytes and wrong UTF-8 raise DataError with the line."""

    closed = False  # asked by Arrow

    def __init__(self, path: Path):
        self._path, self._line, self._quotes = path, 1, 0
        self._file = csv_files.unpacked(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read(self, size: int) -> bytes:
        """The next bytes."""
        try:
            data = self._file.read(size)
        except csv_files.UNREADABLE as error:
            raise DataError(
                f"{self._path}: cut short or corrupt after line {self._line}"
                f" ({type(error).__name__})"
            ) from None
        if (position := data.find(b"\0")) >= 0:
            raise DataError(f"{self._path}, line {self._at(data, position)}: has a NUL byte")
        try:
            self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self._at(data, max(0, error.start))
            raise DataError(f"{self._path}, line {line}: is not UTF-8") from None
        self._line += data.count(b"\n")
        self._quotes += data.count(b'"')
        if not data and size and self._quotes % 2 and self._cut_in_quotes():
            raise DataError(
                f"{self._path}: ends within quotes: cut short, or a quote is not closed"
            )
        return data

    def _cut_in_quotes(self) -> bool:
        """Whether a quoted cell never ends, which Arrow takes for its end; 5" is a cell, too."""
        whole = csv_files.unpacked(self._path)
        with io.TextIOWrapper(whole, encoding="utf-8", newline="") as file:
            try:
                return any(False for _ in csv.reader(file, strict=True))
            except csv.Error as error:
                return "expected after" not in str(error)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self.closed = True

    def _at(self, data: bytes, position: int) -> int:
        return self._line + data[:position].count(b"\n")
