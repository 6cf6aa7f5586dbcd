"""Comma-separated tables of a few thousand rows, read strictly.

A row of another length, a field beyond `MAX_FIELD` and bytes that are not UTF-8 are refused, with
the file and line and nothing of the content.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from m4.errors import DataError

MAX_FIELD = 100_000  # characters


def rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> text without blanks around it) of a file with a header line.

    Raises:
      DataError: a file that cannot be read, lacks one of `columns`, or has a broken row.
    """
    reader = None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            missing = {*columns} - {*(reader.fieldnames or ())}
            if missing:
                raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: not as long as the header")
                if max(map(len, row.values())) > MAX_FIELD:
                    raise DataError(f"{path}, line {reader.line_num}: a field is too long")
                yield reader.line_num, {key: value.strip() for key, value in row.items()}
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        line = f", after line {reader.line_num}" if reader else ""
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path}{line}: cannot be read ({reason})") from None


def number(text: str, *, where: str) -> float:
    """A finite number, NaN for an empty field. Raises DataError that names `where`."""
    if not text:
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where} is not a number") from None
    if value in (float("inf"), float("-inf")):
        raise DataError(f"{where} is infinite")
    return value
