"""Which stay an event belongs to, and where the input of a stay ends inside it."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from m4.errors import DataError

FIRST_HOUR = 5  # of a window that ends within the stay


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


def _draw(stays, row: int, seed: int) -> float:
    """In [0, 1), a function of stay and seed alone."""
    text = f"{seed}:{int(stays.stay[row])}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "little") / 2**48


def some_hour(stays, hours: np.ndarray, seed: int) -> np.ndarray:
    """A full hour of every stay, evenly from 5 to its last (FlexCare takes one at random too)."""
    draws = np.array([_draw(stays, row, seed) for row in range(len(stays))])
    return FIRST_HOUR + np.floor(draws * (np.floor(hours) - FIRST_HOUR + 1))


def some_image(stays, raw_dir: Path, seed: int) -> dict[int, str]:
    """Row -> study of one frontal image after hour 4, drawn evenly; ends that row's window."""
    from m4.data.sets.mimiciv import linked, studies

    root = linked.find(raw_dir, "cxr")
    if root is None:
        raise DataError(*linked.missing(raw_dir, ("cxr_image",), {}))
    images: dict[int, list] = {}
    for row, hour, _, path in studies.frontal(root, stays):
        if hour > FIRST_HOUR - 1:
            images.setdefault(row, []).append((hour, path.parent.name[1:]))
    chosen = {}
    for row, found in sorted(images.items()):
        hour, chosen[row] = sorted(found)[int(_draw(stays, row, seed) * len(found))]
        stays.limit[row] = hour
    if not chosen:
        raise DataError(f"{root}: no frontal chest X-ray in any ICU stay of the cohort")
    return chosen


def only(stays, rows: list[int]):
    """Some of the stays."""
    arrays = {
        f.name: value[rows]
        for f in dataclasses.fields(stays)
        if isinstance(value := getattr(stays, f.name), np.ndarray)
    }
    return dataclasses.replace(stays, **arrays)
