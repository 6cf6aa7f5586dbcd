"""Keys and clocks of all files of a data set: are they the same, and who is matched by what?

Filled while the files are read, asked before a record is made. Letters: N rows of a file, n uses of
events, S subjects with a label, M modalities (the last stands for none).
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m4 import cells
from m4.data.identifiers import NEARLY_NOBODY, Forms, nobody
from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import Definition, Source
from m4.data.shares import SMALLEST, share
from m4.errors import DataError

HOUR = 3_600_000_000
ALWAYS = np.iinfo(np.int64).max  # prediction time of labels without one: every event counts


class Joins:
    """Subjects by number, the clock of every column of times, and whom each file speaks of."""

    def __init__(self, root: Path):
        """`root`: the folder of the files, for the report."""
        self.ids: dict[int | str, int] = {}  # of subjects with a label
        self._root = root
        self._forms = Forms()
        self._clocks: dict[tuple[Path, str], str] = {}  # (file, column) -> zone, "" without one
        self._events: dict[Path, Counter[bool]] = {}  # by whether their subject has a point
        self._known: dict[Source, set[int]] = {}  # numbers of subjects with a point
        self._strangers: dict[Source, set[int | str]] = {}
        self._rows: Counter[Source] = Counter()  # of subjects with a point
        self._numbered: dict[Path, int] = {}  # rows of files that have no identifiers

    def add(self, table: arrow_files.Columns, name: str) -> np.ndarray:
        """i32[N]: numbers of the subjects in a column, new ones for new subjects, -1 for none."""
        found, place_N = table.identifiers(name, self._forms.keep)
        numbers = [self.ids.setdefault(one, len(self.ids)) for one in found]
        return np.array([*numbers, -1], np.int32)[place_N]

    def find(self, table: arrow_files.Columns, name: str) -> tuple[list[int | str], np.ndarray]:
        """The subjects in a column and i32[N], the number of each row's: -1 none, -2 unknown."""
        found, place_N = table.identifiers(name, self._forms.check)
        numbers = [self.ids.get(one, -2) for one in found]
        return found, np.array([*numbers, -1], np.int32)[place_N]

    def require_one(self, paths: Sequence[Path]) -> None:
        """Takes in what files without identifiers a pattern stands for: each has a row 0.

        Raises DataError if there are several, as the rows of two would be one subject's.
        """
        if len(paths) > 1:
            raise DataError(
                f"{paths[1]}: is a file beside {paths[0].name}, and without `subject` rows go"
                " by their number in one file; join the files or name the column of the subject"
            )
        self._numbered.setdefault(paths[0], 0)

    def numbers(self, table: arrow_files.Columns) -> range:
        """The numbers of a batch's rows, which stand for subjects where there are no identifiers.

        `check` wants them to be the same in all such files.
        """
        found = range(table.first, table.first + len(table))
        self._numbered[table.path] = max(self._numbered.get(table.path, 0), found.stop)
        return found

    def times(self, table: arrow_files.Columns, name: str, *, up: bool) -> np.ndarray:
        """A column's times, as of `Columns.times`.

        Raises DataError if they have a zone and those of another column have none, or vice versa.
        """
        time_N, zone = table.times(name, up=up)
        if zone is None:
            return time_N
        for (path, column), other in self._clocks.items():
            if bool(other) != bool(zone):
                raise DataError(
                    f"{table.path}: times of {name!r} have {_clock(zone)}, those of {column!r} in"
                    f" {path} {_clock(other)}; write all with a zone or all without"
                )
        self._clocks.setdefault((table.path, name), zone)
        return time_N

    def count(self, path: Path, source: Source, found: list, subject_N: np.ndarray) -> None:
        """Takes down whose events a batch holds: `found`, numbers are negative without a point."""
        known_N = subject_N[subject_N >= 0]
        events = self._events.setdefault(path, Counter())
        events.update({True: len(known_N), False: len(subject_N) - len(known_N)})
        self._known.setdefault(source, set()).update(np.unique(known_N).tolist())
        self._rows[source] += len(known_N)
        strangers = self._strangers.setdefault(source, set())
        strangers.update(one for one in found if one not in self.ids)

    def lines(self) -> list[str]:
        """The report: a line per file of events, one on the clocks."""
        out = [
            f"{path.relative_to(self._root)}: {cells.count(events.total(), SMALLEST)} events,"
            f" {share(events[True], events.total())} of subjects with a prediction point"
            for path, events in self._events.items()
        ]
        for source, known in self._known.items():
            who = share(len(known), len(self.ids))
            out.append(f"{source.files}: events of {who} of the subjects with a label")
        columns = Counter((column, zone) for (_, column), zone in self._clocks.items())
        clocks = sorted(f"{column!r} {_clock(zone)}" for column, zone in columns)
        return [*out, f"clocks: {', '.join(clocks)}"] if clocks else out

    def untimed(self) -> list[str]:
        """A warning per source whose events have no time: what came too late cannot be told.

        Wide rows that come once for nearly each subject hold whenever, and are none.
        """
        often = 1.5  # rows of one subject
        found = [
            s for s, rows in self._rows.items() if s.code or rows > often * len(self._known[s])
        ]
        said = "has no time: all its events count, also those after the prediction time"
        return [f"{source.files} {said}" for source in dict.fromkeys(found) if not source.time]

    def check(self, *, new: bool) -> None:
        """Raises DataError for a source whose subjects are (nearly) all without a point.

        Of `new` data a small source may be of nobody who is asked. Rows that go by their number are
        as many in every file.
        """
        (other, wanted), *others = self._numbered.items() or [(Path(), 0)]
        for path, rows in others:
            if rows != wanted:
                raise DataError(
                    f"{path}: has {rows:,} rows, {other.name} has {wanted:,}, and without `subject`"
                    " they go by their number; name the column of the subject"
                )
        for source, known in self._known.items():
            could = min(len(known) + len(self._strangers[source]), len(self.ids))
            if nobody(len(known), could) and not (new and could < SMALLEST):
                raise DataError(
                    f"{source.files}: {'hardly a' if known else 'no'} subject in {source.subject!r}"
                    " is one with a label: does the column hold the same identifiers as theirs?"
                )


class Reach:
    """Whose events each modality has, at all and in time for one of the subject's predictions."""

    def __init__(self, definition: Definition, slots: list[range], points):
        """`slots`: those of each modality."""
        modalities, subjects = definition.modalities, len(points.ids)
        self._files = ", ".join(dict.fromkeys(source.files for source in definition.sources))
        self._modalities = modalities
        more = 1 + len(definition.groups)  # window.zero and the groups, which are no modalities
        self._of_slot = np.full(slots[-1].stop + more, len(slots))
        for m, own in enumerate(slots):
            self._of_slot[own.start : own.stop] = m
        self._seen_MS, self._reach_MS = np.zeros((2, len(slots) + 1, subjects), bool)
        self._met_M, self._strange_M = np.zeros((2, len(slots) + 1), np.int64)
        self._first_S, self._last_S = np.full(subjects, ALWAYS), np.full(subjects, -ALWAYS)
        np.minimum.at(self._first_S, points.subject_P, points.time_P)
        np.maximum.at(self._last_S, points.subject_P, points.time_P)
        self._asked = len(np.unique(points.subject_P))
        self._back_M = np.array([*(m.lookback for m in modalities), math.inf]) * HOUR
        self._untimed_M = np.array([*(m.spec.kind != "series" for m in modalities), True])

    def add(self, events: np.ndarray) -> None:
        """Takes in uses of events of subjects with a point."""
        m_n, s_n, time_n = self._of_slot[events["slot"]], events["subject"], events["time"]
        self._seen_MS[m_n, s_n] = True
        first_n = self._first_S[s_n]
        start_n = np.where(first_n == ALWAYS, -math.inf, first_n - self._back_M[m_n])
        inside_n = (time_n >= start_n) & (time_n <= self._last_S[s_n])
        inside_n = np.where(time_n == arrow_files.NEVER, self._untimed_M[m_n], inside_n)
        self._reach_MS[m_n[inside_n], s_n[inside_n]] = True

    def meet(self, slots: list[int], strangers: int) -> None:
        """Takes in a code that is there, with the events of it whose subjects have no point."""
        own = np.unique(self._of_slot[slots])
        self._met_M[own] += 1
        self._strange_M[own] += strangers

    def lines(self) -> list[str]:
        """The report: a line per modality."""
        out = []
        for m, modality in enumerate(self._modalities):
            seen, reach = (
                share(int(x[m].sum()), self._asked) for x in (self._seen_MS, self._reach_MS)
            )
            out.append(
                f"{modality.spec.name}: events of {seen} of the subjects with a prediction point,"
                f" in time for {reach}"
            )
        return out

    def check(self, *, new: bool) -> None:
        """Raises DataError for a modality that (nearly) nobody has. `New` data may lack one."""
        for m, modality in enumerate(self._modalities):
            seen, reach, why = int(self._seen_MS[m].sum()), int(self._reach_MS[m].sum()), ""
            if not seen and self._strange_M[m] and self._asked >= SMALLEST:
                why = "all its events are of subjects without a prediction point"
            elif not (seen or self._met_M[m] or new) and self._asked >= SMALLEST:
                why = f"there is no event with one of its codes in {self._files}"
            elif seen >= SMALLEST and reach <= NEARLY_NOBODY * seen:
                why = (
                    f"{'hardly one' if reach else 'none'} of its events is in time for a"
                    " prediction: do the clocks of events and labels agree, is `lookback` enough?"
                )
            if why:
                raise DataError(f"modality {modality.spec.name}: {why}")


def _clock(zone: str) -> str:
    return f"a zone ({zone})" if zone else "no zone"
