"""How far a mean difference would move with other patients: both arms on the same draws of them.

Letters: N rows, P patients, B draws, S seeds.
"""

import dataclasses
import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.errors import DataError
from m4.eval import bootstrap
from m4.specs import TaskSpec

DRAWS = 200


@dataclasses.dataclass(frozen=True)
class Kept:
    """Predictions of a run on its test split, of one task."""

    row_N: np.ndarray
    patient_N: np.ndarray
    prediction_NC: np.ndarray
    label_NL: np.ndarray
    known_NL: np.ndarray

    def same_rows(self, other: "Kept") -> bool:
        """Whether both are about the same rows of the same patients, with the same labels."""
        return (
            np.array_equal(self.row_N, other.row_N)
            and np.array_equal(self.patient_N, other.patient_N)
            and np.array_equal(self.label_NL, other.label_NL)
            and np.array_equal(self.known_NL, other.known_NL)
        )


def read(path: Path, task: str, digest: str) -> Kept:
    """What `m4.lab.runner` kept of a run. Raises DataError if it is damaged or absent."""
    names = ("row", "patient", f"p/{task}", f"y/{task}", f"known/{task}")
    found = arrays(path, digest)
    if missing := {*names} - {*found}:
        raise DataError(f"{path}: lacks {min(missing)}; delete its row to run it again")
    return Kept(*(found[name] for name in names))


def arrays(path: Path, digest: str) -> dict[str, np.ndarray]:
    """The arrays of a file beside a row, which has its SHA-256. Raises DataError if it differs."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(
            f"{path}: is gone or not what its row was made with; delete the row to run it again"
        ) from None


def draws_of(run: Kept, task: TaskSpec, metric: str, draws: bootstrap.Draws) -> np.ndarray:
    """The metric under every draw of patients, f64[B]; NaN where undefined."""
    args = task, run.label_NL, run.known_NL, run.prediction_NC, draws
    found = bootstrap.score(*args, names=(metric,))
    if metric not in found:
        known = ", ".join(sorted(bootstrap.score(*args)))
        raise DataError(f"{metric}: has no draws; choose one of {known}")
    return found[metric]


def patients_sd(
    arms: Mapping[str, Sequence[Kept]], reference: str, task: TaskSpec, metric: str
) -> tuple[dict[str, float], int | None]:
    """Standard deviation, over patients, of each arm's mean difference to the reference.

    And how many patients there are. NaN where more than a fifth of the draws have no value: that
    is no verdict. Where seeds have other test rows (folds, say) their spread holds that of patients
    already: 0 for every arm, None.
    """
    first = arms[reference][0]
    if not all(run.same_rows(first) for runs in arms.values() for run in runs):
        return dict.fromkeys(arms, 0.0), None
    drawn = bootstrap.resample(first.patient_N, draws=DRAWS)
    number = len(np.unique(first.patient_N))
    mean = {
        label: np.mean([draws_of(run, task, metric, drawn) for run in runs], axis=0)
        for label, runs in arms.items()
    }
    widen = np.sqrt(number / max(number - 1, 1))
    moved = {label: values - mean[reference] for label, values in mean.items()}
    return {label: _spread(values) * widen for label, values in moved.items()}, number


def _spread(value_B: np.ndarray) -> float:
    known = value_B[np.isfinite(value_B)]
    enough = len(known) >= (1 - bootstrap.MAX_UNDEFINED) * len(value_B)
    return float(known.std()) if enough else float("nan")


def task_of(row: Mapping[str, Any]) -> TaskSpec:
    """The task that a row is judged by."""
    plain: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in row["task"].items()}
    return TaskSpec(**plain)
