"""Which modality subsets a sweep evaluates, and what they are called.

Letters: S subsets, N rows, M modalities.
"""

import dataclasses
import itertools
from typing import Literal

import numpy as np

ALL_UP_TO = 4
Kind = Literal["full", "without", "only", "pattern", "other"]


@dataclasses.dataclass(frozen=True)
class Subset:
    """A set of modalities that are kept; all others are masked."""

    label: str
    kind: Kind
    keep: tuple[bool, ...]  # bool[M]


def choose(
    names: tuple[str, ...],
    present_NM: np.ndarray,
    patient_N: np.ndarray,
    *,
    min_patients: int = 10,
) -> list[Subset]:
    """The subsets worth evaluating, the full one first, none twice.

    Up to four modalities: all 2^M - 1. Above: full, leave-one-out, only-one, and every natural
    presence pattern that at least `min_patients` patients have.
    """
    count = len(names)
    keeps = [(True,) * count]
    keeps += [tuple(i != m for i in range(count)) for m in range(count)]
    keeps += [tuple(i == m for i in range(count)) for m in range(count)]
    if count <= ALL_UP_TO:
        keeps += sorted(itertools.product((False, True), repeat=count), key=lambda k: -sum(k))
    else:
        keeps += [keep for keep, n in patterns(present_NM, patient_N) if n >= min_patients]
    return [_named(names, keep) for keep in dict.fromkeys(keeps) if any(keep)]


def matrix(subsets: list[Subset]) -> np.ndarray:
    """The subsets as bool[S, M], what `sweep` takes."""
    return np.array([subset.keep for subset in subsets], bool)


def patterns(present_NM: np.ndarray, patient_N: np.ndarray) -> list[tuple[tuple[bool, ...], int]]:
    """Natural presence patterns with their number of patients, the most frequent first."""
    rows, inverse_N = np.unique(np.asarray(present_NM, bool), axis=0, return_inverse=True)
    counted = [
        (tuple(map(bool, row)), len(np.unique(patient_N[inverse_N.reshape(-1) == i])))
        for i, row in enumerate(rows)
    ]
    return sorted(counted, key=lambda item: (-item[1], item[0]))


def describe(names: tuple[str, ...], keep: tuple[bool, ...]) -> str:
    """The kept modalities: 'vitals + labs', 'all', or 'all but ecg' where that is shorter."""
    gone = [name for name, k in zip(names, keep, strict=True) if not k]
    if not gone:
        return "all"
    if len(gone) <= 2 and len(names) > 5:
        return f"all but {', '.join(gone)}"
    return " + ".join(itertools.compress(names, keep)) or "nothing"


def _named(names: tuple[str, ...], keep: tuple[bool, ...]) -> Subset:
    count = len(names)
    if all(keep):
        return Subset("full", "full", keep)
    if sum(keep) == 1:
        return Subset(f"only {names[keep.index(True)]}", "only", keep)
    if sum(keep) == count - 1:
        return Subset(f"without {names[keep.index(False)]}", "without", keep)
    if count <= ALL_UP_TO:
        return Subset(describe(names, keep), "other", keep)
    return Subset(f"pattern {describe(names, keep)}", "pattern", keep)
