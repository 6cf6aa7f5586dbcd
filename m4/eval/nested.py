"""Conformal prediction with missing data augmentation: CP-MDA with nested masks.

Zaffran, Dieuleveut, Josse and Romano (ICML 2023, arXiv 2306.02732), algorithm 2. A patient is
compared with every patient of the calibration sample on the modalities that *both* have: the other
one is judged without what the patient lacks, and the patient without what the other one lacks. So
everybody calibrates every pattern, however rare. That is valid if what is missing does not depend
on the values or the outcome; where it does, as in most hospitals, look at the coverage that is
found. Classes are calibrated each on its own patients.

It needs predictions under the presence patterns; a pair without a common prediction is left out.

Letters: C rows of calibration, c those of one class, t rows of one pattern, K classes,
M modalities, R pairs, U presence patterns or subsets.
"""

import numpy as np

from m4.eval import conformal
from m4.eval.conformal import Judged
from m4.eval.predictions import Predictions
from m4.eval.questions import Question

NONE = -1
CHUNK = 256  # of them at once
MOST = 2000  # calibration rows that a patient is compared with


def judge(test: "Masked", pairs, alpha: float, instead: Judged, *, seed: int) -> Judged:
    """Sets of the test rows; a class with too few comparable patients keeps the set of `instead`.

    Args:
      test: the rows.
      pairs: (calibration rows as `Masked`, the test rows that they serve, bool[T]).
      alpha: share that may be outside.
      instead: what another method says.
      seed: of the choice of `MOST` rows.
    """
    inside_NK, patients_N = instead.inside_NK.copy(), instead.patients_N.copy()
    cell_N = instead.cell_N.copy()
    smallest, number = conformal.smallest_cell(alpha), int(cell_N.max(initial=0)) + 1
    for sample, rows in pairs:
        sample = sample.some(MOST, seed)
        patterns, which = np.unique(test.full.present_NM[rows], axis=0, return_inverse=True)
        for i, pattern_M in enumerate(patterns):
            own = np.flatnonzero(rows)[which.reshape(-1) == i]
            inside_tK, patients_K = _of_pattern(test, own, sample, pattern_M, alpha)
            for k, patients in enumerate(patients_K):
                if patients < smallest:
                    continue
                inside_NK[own, k] = inside_tK[:, k]
                hit = own[test.full.truth_N[own] == k]
                patients_N[hit], cell_N[hit] = patients, number
                number += 1
    covered_N = inside_NK[np.arange(len(inside_NK)), test.full.truth_N]
    unknown = np.full(inside_NK.shape, np.nan)
    return Judged(inside_NK, covered_N, patients_N, cell_N, unknown)


class Masked:
    """A sample whose scores are known under several subsets of the modalities."""

    def __init__(self, predictions: Predictions, question: Question, chosen: np.ndarray | None):
        """`chosen` rows of the question, None for all."""
        chosen = np.arange(len(question.rows)) if chosen is None else np.flatnonzero(chosen)
        self.predictions, self.question, self.chosen = predictions, question, chosen
        self.full = question.sample(predictions).rows(chosen)
        self._score: dict[int, np.ndarray] = {}
        self._whole = predictions.full()
        subsets = np.asarray(predictions.subsets, bool)
        self.patterns = np.unique(self.full.present_NM, axis=0, return_inverse=True)
        self._place = {keep.tobytes(): s for s, keep in enumerate(subsets)}

    def some(self, most: int, seed: int) -> "Masked":
        """At most so many of the rows, drawn at random."""
        if len(self.chosen) <= most:
            return self
        drawn = np.random.default_rng(seed).choice(len(self.chosen), most, replace=False)
        chosen = np.zeros(len(self.question.rows), bool)
        chosen[self.chosen[drawn]] = True
        return Masked(self.predictions, self.question, chosen)

    def under(self, present_RM: np.ndarray, keep_RM: np.ndarray) -> np.ndarray:
        """The subset under which rows with `present` are seen without what `keep` lacks, i64[R].

        `NONE` where that was not predicted or leaves nothing.
        """
        swept = np.array([self._place.get(keep.tobytes(), NONE) for keep in keep_RM])
        found = np.where((present_RM <= keep_RM).all(axis=1), self._whole, swept)
        return np.where((present_RM & keep_RM).any(axis=1), found, NONE)

    def score(self, subset: int) -> np.ndarray:
        """Scores under a subset, f64[C, K]."""
        if subset not in self._score:
            answers = self.question.answers(self.predictions, subset)
            self._score[subset] = self.question.scores(answers)[self.chosen]
        return self._score[subset]


def _of_pattern(
    test: Masked, own_t: np.ndarray, sample: Masked, pattern_M: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sets bool[t, K] of test rows with one pattern, and the patients that each class rests on."""
    groups_UM, which_C = sample.patterns
    pattern_UM = np.broadcast_to(pattern_M, groups_UM.shape)
    theirs_C = sample.under(groups_UM, pattern_UM)[which_C]  # they without what the pattern lacks
    mine_C = test.under(pattern_UM, groups_UM)[which_C]  # the pattern without what they lack
    usable = np.flatnonzero((theirs_C != NONE) & (mine_C != NONE))
    shape = len(own_t), test.full.score_NK.shape[1]
    inside_tK, patients_K = np.ones(shape, bool), np.zeros(shape[1], int)
    for k in np.unique(sample.full.truth_N[usable]):
        rows = usable[sample.full.truth_N[usable] == k]
        patients_K[k], weight_c = conformal.weights(sample.full.patient_N[rows])
        score_c = _of_subsets(sample, theirs_C[rows], rows, k)
        seen, slot_c = np.unique(mine_C[rows], return_inverse=True)
        mine_Ut = np.stack([test.score(subset)[own_t, k] for subset in seen])
        below_t = np.zeros(len(own_t))  # weight of those less strange than the candidate
        for part in range(0, len(rows), CHUNK):
            c = slice(part, part + CHUNK)
            below_t += weight_c[c] @ (score_c[c, None] < mine_Ut[slot_c[c]])
        inside_tK[:, k] = below_t < (1 - alpha) * (patients_K[k] + 1) - 1e-9
    return inside_tK, patients_K


def _of_subsets(sample: Masked, subset_c: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Scores of class k, of each row under its own subset."""
    score_c = np.zeros(len(rows))
    for subset in np.unique(subset_c):
        own = subset_c == subset
        score_c[own] = sample.score(subset)[rows[own], k]
    return score_c
