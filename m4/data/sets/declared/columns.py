"""What the columns of a table look like, from its first rows: numbers, times, words, whose rows."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4.data import identifiers
from m4.data.sets.declared import arrow_files, notations
from m4.errors import DataError

ROWS = 1 << 18  # of a table that are looked at
MOST_VALUES = 1000  # of a column whose values are counted by subject
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
    mixed: bool = False  # times, of which some have a zone and some none
    unread: int = 0  # cells that cannot be read as times, of a column that looks like one of times
    subjects: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # value -> subjects that have it; see `count_subjects`

    def __post_init__(self):
        self.dated = self.time or self.mixed or self.unread > 0  # times, be they readable or not
        self.filled = self.counts.total()
        self.numbers = sum(n for value, n in self.counts.items() if _is_number(value))  # cells
        self.numeric = bool(self.counts) and not self.dated and self.numbers == self.filled
        self.mostly = bool(self.counts) and not self.dated and self.numbers >= 0.5 * self.filled
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
        """The values that at least so many subjects have, sorted: numbers by size."""
        found = [value for value, count in self.subjects.items() if count >= least]
        return sorted(found, key=float) if self.numeric else sorted(found)


@dataclasses.dataclass
class Table:
    """The first rows of one file, or of several files with the same header."""

    paths: list[Path]
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


def _parts(paths: Sequence[Path]) -> Iterator[arrow_files.Columns]:
    """The first rows of some files, in batches."""
    rows = 0
    for path in paths:
        for part in arrow_files.tables(path):
            yield part
            rows += len(part)
            if rows >= ROWS:
                return


def read(paths: Sequence[Path], files: str) -> Table:
    """Looks at files with the same header. Raises DataError if one is damaged."""
    rows, counts, zones, here = 0, {}, {}, {}
    for table in _parts(paths):
        for name in table.names():
            kept = counts.setdefault(name, collections.Counter())
            if pa.types.is_nested(table.raw(name).type):
                zones[name] = {"no time"}
                here.setdefault(name, []).append(np.zeros(len(table), bool))
                continue
            text, known = _known(table, name)
            for one in text.filter(known).value_counts():
                kept[one["values"].as_py()] += one["counts"].as_py()
            here.setdefault(name, []).append(known.to_numpy(zero_copy_only=False))
            zones.setdefault(name, set()).update(_zones(table, name))
        rows += len(table)
    found = {}
    for name, kept in counts.items():
        read = "no time" not in zones[name]
        time, mixed = read and len(zones[name]) == 1, read and len(zones[name]) > 1
        unread = 0 if read else notations.unread(name, kept)
        here_N = np.concatenate(here[name])
        found[name] = Column(name, kept, time and bool(kept), here_N, mixed, unread)
    return Table([*paths], files, rows, found)


def count_subjects(table: Table) -> None:
    """Counts the subjects that have each value of a column, once the subject is known."""
    wanted = [c for c in table.rest() if not c.dated and 0 < len(c.counts) <= MOST_VALUES]
    pairs: dict[str, set] = {column.name: set() for column in wanted}
    for part in _parts(table.paths):
        for name, seen in pairs.items():
            text, known = _known(part, name)
            who = part.strings(table.subject).filter(known)
            both = pa.table({"value": text.filter(known), "subject": who})
            found = both.group_by(["value", "subject"]).aggregate([]).drop_null()
            seen.update(zip(*(found[key].to_pylist() for key in ("value", "subject")), strict=True))
    for column in wanted:
        column.subjects.update(value for value, _ in pairs[column.name])


def _known(table: arrow_files.Columns, name: str) -> tuple[pa.Array, pa.Array]:
    """The cells as text without blanks around it, and which of them say something."""
    text = pc.utf8_trim_whitespace(table.strings(name))
    known = pc.invert(pc.is_in(text, value_set=pa.array(identifiers.MISSING, text.type)))
    return text, pc.and_(known, text.is_valid())


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


def _zones(table: arrow_files.Columns, name: str) -> set[str]:
    """Whether a column's times have a zone; none of an empty one; bare numbers are no times."""
    text, known = _known(table, name)
    values = text.filter(known).unique().to_pylist()
    if not values:
        return set()  # empty here: the other rows decide
    if all(map(_is_number, values)):
        return {"no time"}
    try:
        _, zone = table.times(name, up=True)
    except DataError as error:
        return {"zone", "none"} if "the times before it have" in str(error) else {"no time"}
    return {"zone" if zone else "none"}


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and float(text) not in (float("inf"), float("-inf"))
    except ValueError:
        return False


def codes(table: Table, code: str, value: str) -> dict[str, tuple[int, float]]:
    """Code -> subjects that have it, and the share of its rows with a number in `value`."""
    pairs: set[tuple[str, str]] = set()
    rows, numbers = collections.Counter(), collections.Counter()
    for part in _parts(table.paths):
        names = part.strings(code).to_pylist()
        subjects = part.strings(table.subject).to_pylist()
        values = part.strings(value).to_pylist() if value else [None] * len(part)
        for name, subject, text in zip(names, subjects, values, strict=True):
            if name is not None and name.strip():
                pairs.add((name, subject))
                rows[name] += 1
                numbers[name] += text is not None and _is_number(text)
    held = collections.Counter(name for name, _ in pairs)
    return {name: (held[name], numbers[name] / rows[name]) for name in held}
