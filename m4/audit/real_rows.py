"""Batches of real rows: a few that between them have every modality, and a run's own.

Letters: N rows of a split, B rows of a batch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from m4.audit.random_rows import ROWS, covering
from m4.data import batch as batches
from m4.data.store import Store, allocate
from m4.types import Batch

LOOKED_AT = 2048  # first rows of a split


@dataclasses.dataclass(frozen=True)
class RealRows:
    """`rows_of(seed)`: other rows of the same split, `ROWS` of them, as one batch."""

    split: Store
    rows: int = ROWS

    def __call__(self, seed: int) -> Batch:
        """A split with fewer rows is gone over again."""
        present_NM = self.split.present()[:LOOKED_AT]
        return of(self.split, covering(present_NM, self.rows, seed), self.rows)


def of(split: Store, indices: Sequence[int] | np.ndarray, rows: int) -> Batch:
    """These rows, filled up to `rows` with empty ones."""
    found, lacking = split.read(np.asarray(indices)), rows - len(indices)
    if lacking:
        filler = allocate(split.spec, lacking)
        found = {key: np.concatenate([array, filler[key]]) for key, array in found.items()}
    uid = np.append(np.asarray(indices), np.full(lacking, -1))
    return batches.assemble(split.spec, found, uid, uid >= 0)
