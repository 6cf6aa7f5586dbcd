"""Scores of one task on any selection of rows, with small cells suppressed.

Letters: N rows, C labels, classes or values, L label columns (C, or 1 for multiclass).
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from m4.eval import bootstrap, calibration, metrics
from m4.eval.bootstrap import Draws, number
from m4.eval.metrics import Value
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

MAX_CURVES = 6  # calibration curves per multilabel or multiclass task, the most frequent labels


class Scored(NamedTuple):
    """Metrics of one model on some rows."""

    values: dict[str, Value]
    draws: dict[str, np.ndarray]  # metric -> f64[B]
    others: dict[str, dict]  # estimates whose interval does not come from the draws


class Scorer:
    """One task of a split. `draws` None serves point values only.

    `threshold` is the validation cut of `f1_val`, None for none.
    """

    def __init__(
        self,
        predictions: Predictions,
        spec: DataSpec,
        task: TaskSpec,
        draws: Draws | None = None,
        threshold: np.ndarray | None = None,
        min_patients: int = 10,
    ):
        self.predictions, self.spec, self.task = predictions, spec, task
        self.draws, self.threshold, self.min_patients = draws, threshold, min_patients
        self.label = predictions.label[task.name]
        self.full = int(np.argmax(predictions.subsets.all(axis=1)))
        self.mask_full = self.mask(self.full)
        self.primary = metrics.PRIMARY[task.kind]
        self.headline = tuple(
            name if threshold is not None else name.replace("f1_val", "f1")
            for name in metrics.HEADLINE[task.kind]
        )
        self._cache: dict[tuple[int, bytes, tuple[str, ...] | None], Scored] = {}

    def mask(self, subset: int) -> np.ndarray:
        """Label cells that count under a subset, bool[N, L]."""
        return self.predictions.scored(self.spec, self.task, subset)

    def patients(self, mask_NL: np.ndarray) -> int:
        """Patients with at least one cell in the mask."""
        return len(np.unique(self.predictions.patient[mask_NL.any(axis=1)]))

    def point(self, subset: int, names: Collection[str] | None = None) -> dict[str, Value]:
        """Metric values of a subset, or those of `names`, without intervals."""
        prediction = self.predictions.prediction[self.task.name][subset]
        args = (self.task, self.label, self.mask(subset), prediction)
        return metrics.score(*args, threshold=self.threshold, names=names)

    def subset(
        self, subset: int, mask_NL: np.ndarray, names: Collection[str] | None = None
    ) -> Scored:
        """The model's scores under a subset on the cells of `mask_NL`, computed once."""
        place = subset, mask_NL.tobytes()
        whole, some = (*place, None), (*place, None if names is None else tuple(names))
        if whole not in self._cache and some not in self._cache:
            prediction = self.predictions.prediction[self.task.name][subset]
            self._cache[some] = self.of(prediction, mask_NL, names)
        return self._cache[whole if whole in self._cache else some]

    def everywhere(
        self, subset: int, mask_NL: np.ndarray, names: Collection[str] | None = None
    ) -> Scored:
        """As `subset`, where rows that have nothing left get the mean of the full input's answers.

        So every subset is scored on the same rows. Needs no label; out of fold it is the fold's.
        """
        predictions, count_N = self.predictions, self.mask(subset).any(axis=1)
        p_NC, full_NC = (predictions.prediction[self.task.name][s] for s in (subset, self.full))
        lost_N = mask_NL.any(axis=1) & ~count_N
        if not lost_N.any():
            return self.subset(subset, mask_NL, names)
        fold_N = np.zeros(len(p_NC)) if predictions.fold is None else predictions.fold
        p_NC = p_NC.copy()
        for fold in np.unique(fold_N[lost_N]):
            own_N = (fold_N == fold) & self.mask_full.any(axis=1)
            p_NC[lost_N & (fold_N == fold)] = full_NC[own_N].mean(axis=0)
        return self.of(p_NC, mask_NL, names)

    def of(
        self,
        prediction_NC: np.ndarray,
        mask_NL: np.ndarray,
        names: Collection[str] | None = None,
    ) -> Scored:
        """Scores of any prediction on the cells of `mask_NL`: every metric, or those of `names`."""
        assert self.draws is not None, "a scorer without draws serves point values only"
        args, fold = (self.task, self.label, mask_NL, prediction_NC), self.predictions.fold
        how: dict[str, Any] = {"threshold": self.threshold, "fold_N": fold, "names": names}
        values = metrics.score(*args, **how)
        drawn = bootstrap.score(*args, self.draws, **how)
        others = {}
        if "ece" in values:
            y, p, row_N = metrics.probabilities(*args)
            ece = _estimate(values["ece"].value) | ({} if len(y) else {"note": values["ece"].note})
            error = _calibration_error(y, p, self.predictions.patient[row_N]) if len(y) else ece
            others = {"calibration_error": error, "ece": ece}
        return Scored(values, drawn, others)

    def estimates(self, scored: Scored, mask_NL: np.ndarray) -> dict[str, dict]:
        """Every metric with its interval, as JSON."""
        if self.patients(mask_NL) < self.min_patients:
            note = f"fewer than {self.min_patients} patients"
            small = {"value": None, "low": None, "high": None, "note": note}
            return dict.fromkeys([*scored.values, *scored.others], small)
        units = self._units(mask_NL, scored.values)
        found = {}
        for name, value in scored.values.items():
            lost = "without one of the labels or classes" if _macro(name) else "undefined"
            args, own = (value, scored.draws[name]), {"units": units[name], "lost": lost}
            found[name] = bootstrap.interval(*args, **own, smallest=self.min_patients)
        return found | scored.others

    def differences(self, a: Scored, b: Scored, mask_NL: np.ndarray, names) -> dict[str, dict]:
        """Paired a - b for the metrics in `names` that have draws, as JSON with two-sided p."""
        names = [name for name in names if name in a.draws]
        values = {name: Value(a.values[name].value - b.values[name].value) for name in names}
        draws = {name: a.draws[name] - b.draws[name] for name in names}
        found = self.estimates(Scored(values, draws, {}), mask_NL)
        units = self._units(mask_NL, names)
        for name, estimate in found.items():
            if estimate["low"] is not None:  # then there are two units
                p = bootstrap.two_sided(values[name].value, draws[name], units=units[name])
                found[name] = estimate | {"p": number(p)}
        return found

    def _units(self, mask_NL: np.ndarray, names: Iterable[str]) -> dict[str, int]:
        """Patients that each score rests on: `rests_on`."""
        return rests_on(self.task, self.label, mask_NL, self.predictions.patient, names)

    def rests_on(self, mask_NL: np.ndarray, name: str) -> int:
        """Patients that a score of the cells rests on, see `m4.eval.bootstrap.interval`."""
        return self._units(mask_NL, [name])[name]

    def against(self, references: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """Each reference model f[N, C] on the rows of the full input, and the paired differences:
        model - reference, and reference - each one before it.

        `f1_val` is left out: its cut was chosen for the model.
        """
        mask, out = self.mask_full, {}
        model = self.subset(self.full, mask)
        names = [name for name in self.headline if not name.startswith("f1_val")]
        scored = {name: self.of(found_NC, mask) for name, found_NC in references.items()}
        for k, (name, own) in enumerate(scored.items()):
            estimates = self.estimates(own, mask)
            before = [*scored.items()][:k]
            out[name] = {
                "metrics": {n: e for n, e in estimates.items() if not n.startswith("f1_val")},
                "delta": self.differences(model, own, mask, names),
                "against": {n: self.differences(own, b, mask, names) for n, b in before},
                "calibration": self.curves(references[name]),
            }
        return out

    def card(self) -> dict[str, Any]:
        """What the task is, and how much there is of it."""
        events, prevalence = self._events()
        patients, cut = self.patients(self.mask_full), self.threshold
        return {
            "kind": self.task.kind,
            "dim": self.task.dim,
            "auxiliary": self.task.auxiliary,
            "primary": self.primary,
            "headline": list(self.headline),
            # Whole: a cut is a predicted value, and rounded it would not count itself as positive.
            "threshold": None if cut is None else [_finite(c) for c in np.ravel(cut)],
            "patients": patients if patients >= self.min_patients else None,
            "events": events,
            "prevalence": prevalence,
        }

    def curves(self, prediction_NC: np.ndarray | None = None) -> list[dict]:
        """Reliability of the full input, or of another model's predictions for the same rows.

        Of the outcome, or of the most frequent labels or classes.
        """
        if self.task.kind in ("regression", "survival", "segmentation"):
            return []
        hot, mask = outcomes(self.task, self.label, self.mask_full)
        positive = hot & mask
        own_NC = self.predictions.prediction[self.task.name][self.full]
        p_NC = (own_NC if prediction_NC is None else prediction_NC).astype(np.float64)
        order = np.argsort(-positive.sum(axis=0), kind="stable")[:MAX_CURVES]
        names = [f"{self.task.name} {c}" for c in range(hot.shape[1])]
        names = [self.task.name] if len(names) == 1 else names
        names = self.task.labels if len(self.task.labels) == len(names) else names
        curves = []
        for c in order:
            keep = mask[:, c]
            if self.patients(mask[:, [c]]) < self.min_patients:
                continue
            y, p, patient = hot[keep, c].astype(float), p_NC[keep, c], self.predictions.patient
            curve = calibration.reliability(y, p, patient[keep], min_patients=self.min_patients)
            enough = self.patients(positive[:, [c]]) >= self.min_patients
            found = {"label": names[c], "curve": [_numbers(x) for x in curve], "brier": {}}
            if enough:
                found |= {
                    "brier": _numbers(calibration.brier_parts(y, p)),
                    "ece": number(calibration.ece(y, p)),
                    "band": [number(x) for x in calibration.band(y, p, patient[keep])],
                    "error": _calibration_error(y, p, patient[keep]),
                }
            curves.append(found)
        return curves

    def _events(self) -> tuple[int | None, list | None]:
        """Patients with the (rarest) outcome and the prevalences.

        None below the smallest cell, and where these would tell of few without an outcome.
        """
        if self.task.kind == "regression":
            return None, None
        hot, mask = outcomes(self.task, self.label, self.mask_full)
        positive, smallest = hot & mask, self.min_patients
        each = [self.patients(column[:, None]) for column in positive.T]
        for c, own in enumerate(each):
            never = self.patients(mask[:, [c]]) - own
            ever = self.patients((mask & ~hot)[:, [c]])  # in one of several rows
            if own < smallest or 0 < never < smallest or 0 < ever < smallest:
                return None, None
        return min(each), [number(rate) for rate in positive.sum(axis=0) / mask.sum(axis=0)]


def outcomes(
    task: TaskSpec, label_NL: np.ndarray, mask_NL: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outcome indicators and the cells of the mask where they are known, both bool[N, C]."""
    if task.kind == "survival":
        return label_NL[:, 1:] > 0, mask_NL[:, 1:]
    if task.kind != "multiclass":
        return label_NL > 0, mask_NL
    hot = np.eye(task.dim, dtype=bool)[label_NL[:, 0].astype(int)]
    return hot, np.broadcast_to(mask_NL[:, :1], hot.shape)


def rests_on(
    task: TaskSpec,
    label_NL: np.ndarray,
    mask_NL: np.ndarray,
    patient_N: np.ndarray,
    names: Iterable[str],
) -> dict[str, int]:
    """Patients that each metric rests on: of the rarer of two outcomes, where there are two.

    A macro metric rests on the label or class with the fewest, of those that it is a mean of.
    """
    hot, known = outcomes(task, label_NL, mask_NL)
    sides = (hot,) if task.kind == "survival" else (hot, ~hot)

    def patients(some_N: Any) -> int:
        return len(np.unique(patient_N[some_N]))

    each = [min(patients(known[:, c] & side[:, c]) for side in sides) for c in range(hot.shape[1])]
    rarest = min((units for units in each if units), default=0)
    two, everybody = task.kind in ("binary", "survival"), patients(mask_NL.any(axis=1))
    return {name: rarest if two or _macro(name) else everybody for name in names}


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: number(value) for key, value in values.items()}


def _finite(value: float) -> float | None:
    """A JSON number with all its digits, None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def _macro(name: str) -> bool:
    return name.endswith("_macro")


def _estimate(value: float, low: float = np.nan, high: float = np.nan) -> dict[str, Any]:
    return {"value": number(value), "low": number(low), "high": number(high)}


def _calibration_error(y: np.ndarray, p: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    found = _estimate(*calibration.error(y, p, patient))
    return found | ({"note": calibration.NO_INTERVAL} if found["low"] is None else {})
