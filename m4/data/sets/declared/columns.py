"""What the columns of a table look like, from its first rows: numbers, times, words, whose rows."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4.data.sets.declared import arrow_files
from m4.errors import DataError

ROWS = 1 << 18  # of a file that are looked at
FEW_GAPS = 0.02  # share of the rows
MOST_GROUPS = 8
SAID = re.compile(r"true|false|yes|no|t|f|y|n|0|1|0\.0|1\.0", re.IGNORECASE)
PICTURE = re.compile(r".+\.(png|jpe?g|tiff?|bmp)", re.IGNORECASE)


@dataclasses.dataclass
class Column:
    """One column: its values with their counts, as text without blanks around it, and its gaps."""

    name: str
    counts: collections.Counter[str]
    time: bool
    here_N: np.ndarray  # bool

    def __post_init__(self):
        self.filled = self.counts.total()
        self.numeric = bool(self.counts) and not self.time and all(map(_is_number, self.counts))
        self.whole = self.numeric and all(float(v).is_integer() for v in self.counts)
        self.words = sum(len(v.split()) * n for v, n in self.counts.items()) / max(1, self.filled)

    @property
    def yes_no(self) -> bool:
        """Whether it says yes or no, in whatever way."""
        return bool(self.counts) and all(SAID.fullmatch(value) for value in self.counts)

    @property
    def pictures(self) -> bool:
        """Whether it holds names of image files."""
        return bool(self.counts) and all(PICTURE.fullmatch(value) for value in self.counts)

    def often(self, least: int) -> list[str]:
        """The values that occur at least so many times, sorted: numbers by size."""
        found = [value for value, count in self.counts.items() if count >= least]
        return sorted(found, key=float) if self.numeric else sorted(found)


@dataclasses.dataclass
class Table:
    """The first rows of one file, or of several files with the same header."""

    path: Path
    files: str  # pattern below the folder
    rows: int
    columns: dict[str, Column]
    subject: str = ""

    def rest(self) -> list[Column]:
        """All columns but the subject."""
        return [column for name, column in self.columns.items() if name != self.subject]

    def per_subject(self) -> float:
        """Rows of one subject, on average."""
        return self.rows / max(1, len(self.columns[self.subject].counts))


def read(path: Path, files: str) -> Table:
    """Looks at a file. Raises DataError if it is damaged."""
    rows, counts, timed, here = 0, {}, {}, {}
    for table in arrow_files.tables(path):
        for name in table.names():
            kept = counts.setdefault(name, collections.Counter())
            if pa.types.is_nested(table.raw(name).type):
                timed[name], here[name] = False, [np.zeros(len(table), bool)]
                continue
            text = pc.utf8_trim_whitespace(table.strings(name))
            known = pc.invert(pc.is_in(text, value_set=pa.array(arrow_files.MISSING, text.type)))
            known = pc.and_(known, text.is_valid())
            for one in text.filter(known).value_counts():
                kept[one["values"].as_py()] += one["counts"].as_py()
            here.setdefault(name, []).append(known.to_numpy(zero_copy_only=False))
            timed[name] = timed.get(name, True) and _is_time(table, name)
        rows += len(table)
        if rows >= ROWS:
            break
    found = {
        name: Column(name, kept, timed[name] and bool(kept), np.concatenate(here[name]))
        for name, kept in counts.items()
    }
    return Table(path, files, rows, found)


def together(found: Sequence[Column]) -> list[list[Column]]:
    """Columns that go missing in much the same rows, for a modality each; those of few gaps first.

    Two groups of gaps are the same where what both lack is over half of what either lacks.
    """
    groups: list[list[Column]] = [[c for c in found if c.here_N.mean() > 1 - FEW_GAPS]]
    for column in found:
        if column in groups[0]:
            continue
        for group in groups[1:]:
            gaps = ~group[0].here_N, ~column.here_N
            if (gaps[0] & gaps[1]).sum() > 0.5 * (gaps[0] | gaps[1]).sum():
                group.append(column)
                break
        else:
            groups.append([column])
    groups = [group for group in groups if group]
    return groups if len(groups) <= MOST_GROUPS else [[*found]]


def _is_time(table: arrow_files.Columns, name: str) -> bool:
    """Whether a column reads as times; one of bare numbers doesn't."""
    text = table.strings(name).drop_null().unique()
    if all(_is_number(value) or not value.strip() for value in text.to_pylist()):
        return not len(text)  # empty here: the other rows decide
    try:
        table.times(name, up=True)
    except DataError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and float(text) not in (float("inf"), float("-inf"))
    except ValueError:
        return False


def codes(table: Table, code: str, value: str) -> dict[str, tuple[int, float]]:
    """Code -> subjects that have it, and the share of its rows with a number in `value`."""
    pairs: set[tuple[str, str]] = set()
    rows, numbers = collections.Counter(), collections.Counter()
    seen = 0
    for part in arrow_files.tables(table.path):
        names = part.strings(code).to_pylist()
        subjects = part.strings(table.subject).to_pylist()
        values = part.strings(value).to_pylist() if value else [None] * len(part)
        for name, subject, text in zip(names, subjects, values, strict=True):
            if name is not None and name.strip():
                pairs.add((name, subject))
                rows[name] += 1
                numbers[name] += text is not None and _is_number(text)
        seen += len(part)
        if seen >= ROWS:
            break
    held = collections.Counter(name for name, _ in pairs)
    return {name: (held[name], numbers[name] / rows[name]) for name in held}
