"""`refit.json`: what a model that was trained on all rows has from the cross-validation before it.

{folds: k, parameters: [step and digest of each fold's best parameters],
steps: [best step of each fold], step: the last one trained, choose, rows,
thresholds: {task: [cut]}, cuts: {task: {point: [cut]}},      chosen out of fold
expected: {task: {metric: E}}}                                scores out of fold
"""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m4 import seal
from m4.errors import DataError

FILE = "refit.json"
Cuts = tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]


def write(folder: Path, document: Mapping[str, Any], cuts: Cuts) -> None:
    """Writes it, with the thresholds and cuts."""
    thresholds, points = cuts
    own = {
        "thresholds": {task: _plain(cut) for task, cut in thresholds.items()},
        "cuts": {t: {n: _plain(c) for n, c in named.items()} for t, named in points.items()},
    }
    text = json.dumps({**document, **own}, indent=1, allow_nan=False) + "\n"
    seal.write(folder, FILE, text)


def cuts(folder: Path) -> Cuts:
    """(thresholds, cuts) as `results.thresholds` and `operating.choose` give them; {} without.

    Raises DataError for a damaged file.
    """
    path = folder / FILE
    if not path.exists():
        return {}, {}
    try:
        if seal.problem(folder, FILE):
            raise ValueError
        found = seal.load(path)
        return (
            {task: _array(cut) for task, cut in found["thresholds"].items()},
            {t: {n: _array(c) for n, c in named.items()} for t, named in found["cuts"].items()},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{path}: is damaged; --mode=refit writes it again") from None


def says(folder: Path, document: Mapping[str, Any]) -> bool:
    """Whether it is there as it was written, and says what a document beside its cuts would.

    What an older version did not write down differs in nothing.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if (folder / FILE).is_file() and seal.problem(folder, FILE) is None:
            known = seal.load(folder / FILE)
            wanted = json.loads(json.dumps(document))
            return all(known.get(key, value) == value for key, value in wanted.items())
    return False


def text(folder: Path) -> str:
    """It as written, to be passed on. Raises DataError for a damaged one."""
    return seal.text_of(folder, FILE, "--mode=refit writes it again")


def _plain(value: np.ndarray) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in np.ravel(value).tolist()]


def _array(value: list[float | None]) -> np.ndarray:
    return np.array([math.nan if x is None else x for x in value], float)
