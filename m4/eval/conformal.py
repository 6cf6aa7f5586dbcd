"""Prediction sets and intervals that hold what they promise, whatever modalities a patient has.

Split conformal prediction (Vovk, Gammerman and Shafer 2005) on patients who neither trained nor
chose the model: a class is inside the set when its score, 1 - p, is no larger than the threshold of
its cell; an interval reaches as far as the threshold of absolute residuals. The set or interval
holds the truth for 1 - alpha of the patients of a cell. Cells are made of

- `pooled`: everybody;
- `class`: patients of that class;
- `pattern`: patients with the same modalities, backing off (`levels`) where there are fewer than
  `smallest` of them;
- `pattern_class`: both, so that deaths are covered among those without a lab, too.

`m4.eval.nested` is the alternative that shares what patients with other modalities know.

Rows of one patient count as one: each weighs 1 / (rows of the patient in the cell), so that the
promise is for a random row of a new patient (Lee, Barber and Willett, arXiv 2306.06342).

Letters: N rows, C of calibration, T of test, K classes (1 of an interval), M modalities.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Key = tuple[bool, ...]
BACK_OFF = (6, 4, 3, 2, 1)  # modalities by which patterns are told apart, after all of them
METHODS = {  # name -> by pattern, by class
    "pooled": (False, False),
    "class": (False, True),
    "pattern": (True, False),
    "pattern_class": (True, True),
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a method knows of rows whose truth is known.

    A candidate's score says how strange it would be as the truth: 1 - p of a class, of an interval
    the absolute residual, of which there is one candidate.
    """

    score_NK: np.ndarray  # f64
    truth_N: np.ndarray  # i64, which of the K is true; 0 of an interval
    present_NM: np.ndarray  # bool
    patient_N: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Sample":
        """Some of the rows."""
        return Sample(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))

    @property
    def own_N(self) -> np.ndarray:
        """Score of the truth."""
        return self.score_NK[np.arange(len(self.truth_N)), self.truth_N]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Thresholds of a method: by level, by pattern over the modalities of that level, by class."""

    levels: tuple[tuple[int, ...], ...]  # modalities that tell cells apart; () last: everybody
    value: tuple[dict[Key, np.ndarray], ...]  # f64[K]; inf where everything is inside
    patients: tuple[dict[Key, np.ndarray], ...]  # i64[K], of calibration
    smallest: int

    def cells(self, present_TM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Threshold f64[T, K], patients behind it i64[T, K] and number of its cell i64[T, K]."""
        patterns, row_T = np.unique(present_TM, axis=0, return_inverse=True)
        numbers: dict[tuple, int] = {}
        found = [self._of(pattern, numbers) for pattern in patterns]
        value, patients, cell = (
            np.array(part)[row_T.reshape(-1)] for part in zip(*found, strict=True)
        )
        return value, patients, cell

    def _of(self, pattern_M: np.ndarray, numbers: dict[tuple, int]):
        """Of each class the first level at which enough patients have this pattern."""
        value, patients, cell = [], [], []
        for k in range(len(self.value[-1][()])):
            for level, among in enumerate(self.levels):
                key = tuple(map(bool, pattern_M[list(among)]))
                enough = self.patients[level].get(key, np.zeros(k + 1))[k] >= self.smallest
                if enough or not among:
                    break
            value.append(self.value[level][key][k])
            patients.append(int(self.patients[level][key][k]))
            cell.append(numbers.setdefault((level, key, k), len(numbers)))
        return value, patients, cell


def recommended(classes: Sequence[str]) -> str:
    """The method whose sets are given to people: of a question with classes, or without."""
    return "pattern_class" if classes else "pattern"


def rule(sample: Sample, method: str, alpha: float) -> Rule:
    """The thresholds of a method of `METHODS`."""
    by_pattern, by_class = METHODS[method]
    smallest = smallest_cell(alpha)
    return fit(sample, alpha=alpha, by_pattern=by_pattern, by_class=by_class, smallest=smallest)


def fit(sample: Sample, *, alpha: float, by_pattern: bool, by_class: bool, smallest: int) -> Rule:
    """The thresholds that a calibration sample gives; `smallest` patients make a cell."""
    num = sample.score_NK.shape[1]
    own_C = sample.own_N
    tiers = levels(sample.present_NM) if by_pattern else ((),)
    value, patients = [], []
    for among in tiers:
        cells = _groups(sample.present_NM[:, list(among)])
        value.append({})
        patients.append({})
        for key, rows in cells.items():
            if among and rows.sum() < smallest:
                continue  # it would not be used
            masks = [rows & (sample.truth_N == k) for k in range(num)] if by_class else [rows] * num
            found = [threshold(own_C[m], sample.patient_N[m], alpha) for m in masks]
            value[-1][key] = np.array([q for q, _ in found])
            patients[-1][key] = np.array([n for _, n in found])
    return Rule(tiers, tuple(value), tuple(patients), smallest)


def levels(present_NM: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """By which modalities patterns are told apart: all, then fewer and fewer, at last none.

    Those that are there about half of the time say most, and stay longest.
    """
    count = present_NM.shape[1]
    order = np.argsort(np.abs(present_NM.mean(axis=0) - 0.5), kind="stable")
    fewer = (tuple(sorted(order[:n].tolist())) for n in BACK_OFF if n < count)
    return (tuple(range(count)), *fewer, ())


def threshold(score_C: np.ndarray, patient_C: np.ndarray, alpha: float) -> tuple[float, int]:
    """The score below which 1 - alpha of new patients stay, and the patients that it rests on.

    Infinite with so few patients that nothing less is sure.
    """
    patients, weight_C = weights(patient_C)
    order = np.argsort(score_C, kind="stable")
    mass = np.cumsum(weight_C[order])
    place = np.searchsorted(mass, (1 - alpha) * (patients + 1) - 1e-9)
    return (float(score_C[order[place]]) if place < len(order) else math.inf), patients


def weights(patient_N: np.ndarray) -> tuple[int, np.ndarray]:
    """How many patients there are, and 1 / (rows of its patient) of each row."""
    _, which_N, count = np.unique(patient_N, return_inverse=True, return_counts=True)
    return len(count), 1.0 / count[which_N.reshape(-1)]


def smallest_cell(alpha: float) -> int:
    """Patients that a cell needs: 10, and as many as make a threshold finite.

    Larger cells would merge unlike patterns, and the promise would not hold for either.
    """
    return max(10, math.ceil(1 / alpha))


def parts(patient_N: np.ndarray, network_N: np.ndarray | None, *, folds: int, seed: int):
    """(calibration rows, test rows) of cross-fitting by patients, bool[N] each.

    Every patient is judged by thresholds of the others. Each network has folds of its own: scores
    of different networks are not comparable.
    """
    rng = np.random.default_rng([seed, 0x636F6E66])
    network_N = np.zeros(len(patient_N), int) if network_N is None else network_N
    for network in np.unique(network_N):
        own = network_N == network
        ids, which = np.unique(patient_N[own], return_inverse=True)
        fold = np.full(len(patient_N), -1)
        fold[own] = (rng.permutation(len(ids)) % folds)[which.reshape(-1)]
        for k in range(min(folds, len(ids))):
            yield own & (fold != k), fold == k


def _groups(pattern_Nm: np.ndarray) -> dict[Key, np.ndarray]:
    """Pattern -> its rows, bool[N]; of no modality everybody."""
    if not pattern_Nm.shape[1]:
        return {(): np.ones(len(pattern_Nm), bool)}
    patterns, which = np.unique(pattern_Nm, axis=0, return_inverse=True)
    return {tuple(map(bool, pattern)): which.reshape(-1) == i for i, pattern in enumerate(patterns)}


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a method said of rows whose truth is known."""

    inside_NK: np.ndarray  # bool; of an interval whether the truth is
    covered_N: np.ndarray  # bool
    # Of the truth: patients behind its threshold, and which cell gave it.
    patients_N: np.ndarray
    cell_N: np.ndarray
    value_NK: np.ndarray  # f64, the threshold

    def size_N(self) -> np.ndarray:
        """Classes in the set."""
        return self.inside_NK.sum(axis=1)


def judge(
    test: Sample, pairs: Sequence[tuple[Sample, np.ndarray]], method: str, alpha: float
) -> Judged:
    """Sets of the test rows by a method of `METHODS`.

    Args:
      test: the rows.
      pairs: (calibration sample, the test rows that it serves, bool[T]), which meet each row once.
      method: name.
      alpha: share that may be outside.
    """
    _, by_class = METHODS[method]
    shape = test.score_NK.shape
    value_NK, patients_NK, cell_NK = np.zeros(shape), np.zeros(shape, int), np.zeros(shape, int)
    for number, (sample, rows) in enumerate(pairs):
        value, patients, cell = rule(sample, method, alpha).cells(test.present_NM[rows])
        cell = cell if by_class else cell[:, :1]  # all classes share a threshold
        value_NK[rows], patients_NK[rows] = value, patients
        cell_NK[rows] = cell * len(pairs) + number
    return of_thresholds(test, value_NK, patients_NK, cell_NK)


def of_thresholds(test: Sample, value_NK, patients_NK, cell_NK) -> Judged:
    """The sets that thresholds give."""
    inside_NK, row_N = test.score_NK <= value_NK, np.arange(len(test.truth_N))
    own = row_N, test.truth_N
    return Judged(inside_NK, inside_NK[own], patients_NK[own], cell_NK[own], value_NK)
