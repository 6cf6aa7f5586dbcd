"""The cohort: which stays, where the input of each ends, and which stay an event belongs to."""

import dataclasses
from typing import Any

import numpy as np

from m4.data.csv_files import NEVER
from m4.data.sets.mimiciv.life import Life

Everyone = dict[str, np.ndarray]  # every identifier of the release, sorted, by its column


@dataclasses.dataclass
class Stays:
    """Arrays over n stays, ordered by split and within a split by subject and time."""

    life: Life
    unit: np.ndarray  # i64[n], what is split and resampled: the subject, or the stay if asked
    limit: np.ndarray  # f64[n], end of the window in hours since ICU admission
    split: np.ndarray  # index into `splits`, i64[n]
    splits: tuple[str, ...]
    static: np.ndarray  # f32[n, len(catalogue.STATIC)]
    # task -> f64[n] or f64[n, labels], NaN where there is no label
    targets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # per stay: hashed codes, latest admission last; empty if not asked
    history: list[np.ndarray] = dataclasses.field(default_factory=list)
    demographics: np.ndarray | None = None  # f32[n, 6], see `haim_blocks.py`
    everyone: Everyone = dataclasses.field(default_factory=dict)
    joining: list[str] = dataclasses.field(default_factory=list)  # how each table matches
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)  # taken from training stays

    def __len__(self) -> int:
        return len(self.life)

    def only(self, rows: list[int]) -> "Stays":
        """Some of the stays, before they have labels and history."""
        arrays = {name: getattr(self, name)[rows] for name in ("unit", "limit", "split", "static")}
        return dataclasses.replace(self, life=self.life.take(rows), **arrays)

    def inside(self, row: np.ndarray, time: np.ndarray, known: np.ndarray, counts) -> np.ndarray:
        """bool[e]: whether events at a time, known at another, lie in the window of the stay `row`.

        What is known too late is added to `counts`; an unknown time of recording counts as early.
        """
        hour, limit = self.life.hour_of(row, time), self.limit[row]
        inside, late = (hour >= 0) & (hour <= limit), self.life.hour_of(row, known) > limit
        if counts is not None:
            counts["dropped, recorded after the window"] += int((inside & late).sum())
        return inside & ~late

    def place(self, subject, time: np.ndarray) -> list[tuple[int, int, float]]:
        """(position, row, hour) of the records of Arrow's `subject` that lie in a stay's window."""
        subject = subject.fill_null(-1).to_numpy(zero_copy_only=False)
        find_row = Finder(self.life.subject, self.life.intime)
        ours = np.flatnonzero(find_row.known(subject) & (time > NEVER))
        row = find_row(subject[ours], time[ours])
        hour = self.life.hour_of(row, time[ours])
        keep = (hour >= 0) & (hour <= self.limit[row])
        return [*zip(ours[keep].tolist(), row[keep].tolist(), hour[keep].tolist(), strict=True)]


class Finder:
    """The stay that an event belongs to, by patient (or stay) and time."""

    def __init__(self, keys: np.ndarray, begins: np.ndarray):
        self._order = np.lexsort((begins, keys))
        self._keys, self._begins = keys[self._order], np.unique(begins)
        self._codes = self._code(self._keys, begins[self._order])

    def known(self, key: np.ndarray) -> np.ndarray:
        """bool[e]: whether the cohort has this key; it never has a null (-1)."""
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return (self._keys[at] == key) & (key != -1)

    def rows(self, key: int) -> np.ndarray:
        """All stays of one key."""
        return self._order[slice(*np.searchsorted(self._keys, [key, key + 1]))]

    def __call__(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Of a known key, the last stay that began by then, else the first."""
        at = np.searchsorted(self._codes, self._code(key, time), "right") - 1
        return self._order[np.maximum(at, np.searchsorted(self._keys, key))]

    def _code(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Numbers in the order of key, then of the stays that began by then."""
        began = np.searchsorted(self._begins, time, "right")
        return np.searchsorted(self._keys, key) * (len(self._begins) + 1) + began
