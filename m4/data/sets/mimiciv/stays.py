"""The cohort: which stays, where the input of each ends, and which stay an event belongs to."""

import dataclasses

import numpy as np

from m4.data.csv_files import NEVER
from m4.data.sets.mimiciv.life import Life


@dataclasses.dataclass
class Stays:
    """Arrays over n stays, ordered by split and within a split by subject and time."""

    life: Life
    unit: np.ndarray  # i64[n], what is split and resampled: the subject, or the stay if asked
    limit: np.ndarray  # f64[n], end of the window in hours since ICU admission
    split: np.ndarray  # index into `splits`, i64[n]
    splits: tuple[str, ...]
    targets: dict[str, np.ndarray]  # task -> f64[n] or f64[n, labels], NaN where there is no label
    static: np.ndarray  # f32[n, len(catalogue.STATIC)]
    history: list[np.ndarray]  # per stay: hashed codes, latest admission last; empty if not asked
    demographics: np.ndarray | None = None  # f32[n, 6], see `haim_blocks.py`

    def __len__(self) -> int:
        return len(self.life)

    def only(self, rows: list[int]) -> "Stays":
        """Some of the stays, before they have labels and history."""
        parts = ("unit", "limit", "split", "static")
        arrays = {name: getattr(self, name)[rows] for name in parts}
        return dataclasses.replace(self, life=self.life.take(rows), **arrays)

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
        self._keys, self._begins = keys[self._order], begins[self._order]

    def known(self, key: np.ndarray) -> np.ndarray:
        """bool[e]: whether the cohort has this key."""
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return self._keys[at] == key

    def rows(self, key: int) -> np.ndarray:
        """All stays of one key."""
        return self._order[slice(*np.searchsorted(self._keys, [key, key + 1]))]

    def __call__(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Of a known key, the last stay that began by then, else the first."""
        low, high = (np.searchsorted(self._keys, key, side) for side in ("left", "right"))
        at = low.copy()
        for step in range(1, int((high - low).max(initial=1))):
            later = low + step
            ok = later < high
            ok[ok] &= self._begins[later[ok]] <= time[ok]
            at = np.where(ok, later, at)
        return self._order[at]
