"""Whose records a table holds: are they patients of this release at all, and how many are ours?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from m4 import cells
from m4.data.identifiers import FEW, nobody
from m4.data.sets.mimiciv.stays import Stays
from m4.data.shares import SMALLEST, share
from m4.errors import DataError

Found = dict[str, int]
WHO = {"subject_id": "patients", "stay_id": "ICU stays"}


class Matches:
    """The identifiers in one column of a table, taken in batch by batch."""

    def __init__(self, key: str, stays: Stays):
        """`key`: "subject_id" or "stay_id"."""
        self.key = key
        own = {"subject_id": stays.life.subject, "stay_id": stays.life.stay}[key]
        self._own, self._all = np.unique(own), stays.everyone.get(key, np.unique(own))
        self._met: set[int] = set()  # of the cohort
        self._known: set[int] = set()  # of the release
        self._strangers: set[int] = set()
        self._records = self._ours = 0

    def add(self, key_e: np.ndarray) -> None:
        """Takes in the identifiers of a batch; negative ones are none."""
        key_e = key_e[key_e >= 0]
        found, count = np.unique(key_e, return_counts=True)
        known, own = _among(self._all, found), _among(self._own, found)
        self._met.update(found[own].tolist())
        self._known.update(found[known].tolist())
        self._strangers.update(found[~known].tolist())
        self._records, self._ours = self._records + len(key_e), self._ours + int(count[own].sum())

    def check(self, path: Path) -> Found:
        """The counts. Raises DataError for a table that is of (nearly) nobody in the release."""
        could = min(len(self._all), len(self._known) + len(self._strangers))
        if nobody(len(self._known), could):
            raise DataError(
                f"{path}: {'hardly any' if self._known else 'none'} of its {WHO[self.key]}"
                f" ({self.key}) is in the tables of this release: is it of another one?"
            )
        return {
            "met": len(self._met),
            "own": len(self._own),
            "records": self._records,
            "ours": self._ours,
        }


def line(name: str, table: str, key: str, found: Found, kept: int) -> str:
    """How one table matches, for people; `kept` records are in a window of the cohort."""
    records = cells.count(found["records"], SMALLEST)
    return (
        f"{name}: {table}: {records} records, of {share(found['met'], found['own'])} of the"
        f" cohort's {WHO[key]}; {share(found['ours'], found['records'])} of the records are theirs,"
        f" {share(kept, found['records'])} in time"
    )


def require_embedded(name: str, found: int, asked: int) -> None:
    """Raises DataError if (nearly) none of the records of a modality has an embedding."""
    if asked >= FEW and nobody(found, asked):
        raise DataError(
            f"data.options.embeddings.{name}: {'hardly any' if found else 'none'} of the records"
            " in a stay's window is there: is it the folder of other records?"
        )


def require_there(
    name: str, paths: list[Path], there: Callable[[Path], bool], most: int = 2000
) -> list[str]:
    """A line on how many of some files exist (of `most`, evenly). DataError if not one does."""
    asked = paths[:: max(len(paths) // most, 1)]
    found = sum(map(there, asked))
    if asked and not found:
        raise DataError(f"{name}: not one of the images that the metadata list is there")
    if not asked:
        return []
    return [f"{name}: {share(found, len(asked))} of the listed images are there"]


def _among(sorted_all: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_all):
        return np.zeros(len(wanted), bool)
    at = np.searchsorted(sorted_all, wanted).clip(max=len(sorted_all) - 1)
    return sorted_all[at] == wanted
