"""Comma-separated files: `rows` of small ones, strictly; a `stream` of large ones.

Of a small one a row of another length, a field beyond `MAX_FIELD` and bytes that are not UTF-8 are
refused, with the file and line and nothing of the content. A large one comes in record batches of
Arrow, which is imported with the first of them. Neither may have more than `MAX_COLUMNS` columns.
"""

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from m4 import regular
from m4.data import identifiers
from m4.errors import DataError

MAX_FIELD = 100_000  # characters
MAX_LINE = 1 << 22  # characters of a first line, and of any line of a small file
MAX_COLUMNS = 1 << 17  # each takes some 4 KiB of memory
BLOCK_BYTES = 1 << 20  # of a stream; pyarrow reads up to 32 blocks ahead
NEVER = -(1 << 53)  # stands for an unknown time
UNREADABLE = (OSError, EOFError, zlib.error)  # what reading a damaged `.gz` ends in
NO_FORMS: Mapping[str, identifiers.Forms] = {}


def rows(
    path: Path,
    columns: Iterable[str],
    *,
    ids: Iterable[str] = (),
    forms: Mapping[str, identifiers.Forms] = NO_FORMS,
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> text without blanks around it) of a file with a header line.

    The columns `ids` are in their canonical form (`m4.data.identifiers`); of one in `forms` every
    number is written as in the files read with the same before.

    Raises:
      DataError: a file that cannot be read, lacks one of `columns` or has it twice, or has a
        broken row.
    """
    reader = None
    try:
        with _text(path) as file:
            reader = csv.DictReader(_lines(file, path), strict=True)
            missing = {*columns} - {*(reader.fieldnames or ())}
            if missing:
                raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
            require_few(path, len(reader.fieldnames or ()))
            _require_once(path, columns, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: not as long as the header")
                if max(map(len, row.values())) > MAX_FIELD:
                    raise DataError(f"{path}, line {reader.line_num}: a field is too long")
                where = f"{path}, line {reader.line_num}:"
                known = {
                    name: identifiers.text(row[name], f"{where} {name!r}", forms.get(name))
                    for name in ids
                }
                yield reader.line_num, {k: v.strip() for k, v in row.items()} | known
    except (csv.Error, UnicodeDecodeError, *UNREADABLE) as error:
        line = f", after line {reader.line_num}" if reader else ""
        raise DataError(f"{path}{line}: cannot be read ({reason(error)})") from None


def number(text: str, *, where: str) -> float:
    """A finite number, NaN for an empty field. Raises DataError that names `where`."""
    if not text:
        return float("nan")
    try:
        value = float(text.replace("_", "?"))  # Python reads 1_0 as ten
    except ValueError:
        raise DataError(f"{where} is not a number") from None
    if value in (float("inf"), float("-inf")):
        raise DataError(f"{where} is infinite")
    return value


def header(path: Path) -> list[str]:
    """The columns of a csv file.

    Raises DataError for a file that is empty or cannot be read, and for too many columns.
    """
    try:
        with _text(path) as handle:
            names = next(csv.reader(_few(handle, path)), [])
    except (csv.Error, UnicodeDecodeError, *UNREADABLE) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None
    require_few(path, len(names))
    if not names:
        raise DataError(f"{path}: has no first line with the names of its columns")
    return names


def unpacked(path: Path) -> BinaryIO:
    """The bytes of a file, of a `.gz` those that it holds; reading them raises `UNREADABLE`.

    Raises OSError if it is not there or no regular file, which would be waited for.
    """
    file = regular.opened(path)
    if path.suffix != ".gz":
        return file
    return _Packed(file)  # pyright: ignore[reportReturnType]


class _Packed(gzip.GzipFile):
    """What a file holds; it is closed with this one."""

    def __init__(self, file: BinaryIO):
        super().__init__(fileobj=file, mode="rb")
        self._packed = file

    def close(self) -> None:
        super().close()
        self._packed.close()


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in the system's words or by the kind of error."""
    return getattr(error, "strerror", None) or type(error).__name__


def require_few(path: Path, columns: int) -> None:
    """Raises DataError for more than `MAX_COLUMNS`."""
    if columns > MAX_COLUMNS:
        raise DataError(f"{path}: has {columns:,} columns, the limit is {MAX_COLUMNS:,}")


def _text(path: Path) -> TextIO:
    # Excel writes a mark in front, and line breaks into names, within quotes.
    return io.TextIOWrapper(unpacked(path), encoding="utf-8-sig", newline="")


def _lines(handle: TextIO, path: Path) -> Iterator[str]:
    """All lines; DataError for one of more than `MAX_LINE` characters."""
    while line := handle.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DataError(f"{path}: a line is longer than {MAX_LINE:,} characters")
        yield line


def _require_once(path: Path, columns: Iterable[str], names: Sequence[str]) -> None:
    """Raises DataError for a column that a header names twice: which of the two is meant?"""
    if twice := sorted(name for name in {*columns} if list(names).count(name) > 1):
        raise DataError(f"{path}: has more than one column {', '.join(twice)}")


def _few(handle: TextIO, path: Path) -> Iterator[str]:
    """The first lines; DataError if more than `MAX_LINE` characters are asked for."""
    left = MAX_LINE
    while line := handle.readline(left):
        left -= len(line)
        if left <= 0:
            raise DataError(f"{path}: its first line is longer than {MAX_LINE:,} characters")
        yield line


def stream(
    path: Path, columns: dict[str, str], *, forms: Mapping[str, identifiers.Forms] = NO_FORMS
) -> Iterator:
    """Record batches of some columns of a csv file, in order, in bounded memory.

    Args:
      path: the file; `.gz` is decompressed on the way.
      columns: name -> "int" (also 7.0, as pandas writes 7 beside empty fields), "float", "time"
        (microseconds: some tables carry fractions of a second), "text", or "id": text in its
        canonical form (`m4.data.identifiers`). An empty field is null, in a text the empty string.
      forms: of columns of identifiers: how their numbers are written in other files.

    Raises:
      DataError: a file that is unreadable, cut short, lacks a column or has it twice. The message
        names the file and the place but quotes nothing of its content.
    """
    import pyarrow as pa

    _require_once(path, columns, header(path))
    rows, careful = 0, {name: "whole" if kind == "int" else kind for name, kind in columns.items()}
    for kinds in (columns, careful):
        seen = 0
        try:
            if kinds is columns != careful:  # Arrow takes 007 for 7; who pads does so everywhere
                for batch in itertools.islice(_open(path, careful), 1):
                    _canonical(batch, path, careful, 0, forms)
            for batch in _open(path, kinds):
                first, seen = seen, seen + batch.num_rows
                if first == rows:  # not yielded before
                    rows = seen
                    yield _canonical(batch, path, kinds, first, forms)
            return
        except (pa.ArrowKeyError, KeyError):
            names = ", ".join(columns)
            raise DataError(f"{path}: needs the columns {names}; one is missing") from None
        except (pa.ArrowException, OSError, EOFError) as error:
            if kinds is columns and "conversion error to int64" in str(error):
                continue
            kind = "cut short or corrupt" if isinstance(error, OSError | EOFError) else "malformed"
            raise DataError(
                f"{path}: {kind} after {rows} rows ({type(error).__name__}); download it again"
            ) from None


def _open(path: Path, columns: Mapping[str, str]) -> Iterator:
    import pyarrow as pa
    from pyarrow import csv as arrow

    types = {"int": pa.int64(), "float": pa.float64(), "time": pa.timestamp("us")}
    convert = arrow.ConvertOptions(
        include_columns=list(columns),
        column_types={name: types.get(kind, pa.utf8()) for name, kind in columns.items()},
        strings_can_be_null=False,
    )
    yield from arrow.open_csv(
        path,
        read_options=arrow.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=arrow.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _canonical(batch, path: Path, columns: Mapping[str, str], first: int, forms: Mapping):
    """The batch with identifiers in canonical form; `first` rows of the file are before it."""
    import pyarrow as pa

    for number, (name, kind) in enumerate(columns.items()):
        if kind not in ("id", "whole"):
            continue
        own = forms[name].keep if name in forms else None
        check = identifiers.require_number if kind == "whole" else own
        coded = batch[name].dictionary_encode()
        found = identifiers.of_column(coded, path, name, first, check)
        if kind == "id":
            found = ["" if one is None else str(one) for one in found]
        column = pa.array(found, pa.int64() if kind == "whole" else pa.utf8()).take(coded.indices)
        batch = batch.set_column(number, name, column)
    return batch


def seconds(column, *, up: bool = False):
    """A time column as whole seconds since 1970, int64, `NEVER` where it is null; down, or `up`."""
    known = column.is_valid().to_numpy(zero_copy_only=False)
    micro = column.cast("int64").fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(known, (micro + (999_999 if up else 0)) // 1_000_000, NEVER)
