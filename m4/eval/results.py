"""One split's evaluation as one JSON document, `results/<split>.json`.

Schema (version 1). `E` stands for an estimate {value, low, high, note?}: null where undefined or
suppressed, `note` says why; low and high are the 95 % interval, of the patient bootstrap except for
calibration_error. `ece` has none. Differences and drops have `p` (two-sided, normal) too.

    schema        1
    split         'test'
    rows, patients            of the split; null below `min_patients`
    bootstrap     {draws, level, seed, unit: 'patient'}
    folds         1; of cross-validation, how many networks predicted
    min_patients  10          smaller cells are suppressed or pooled
    modalities    [name]
    tasks         {task: {kind, dim, auxiliary, primary, headline: [metric], threshold: [f] | null,
                  patients, events, prevalence}}   events = patients with the (rarest) outcome;
                  both null where few have it, or few do not
    patterns      [{label, patients}]              natural presence patterns, small ones pooled
    subsets       [{label, kind, keep: [name]}]
    scores        [{task, subset, patients, metrics: {metric: E}, common: {primary: E}}]
    deltas        [{task, subset, patients, metrics: {metric: E}, common: {primary: E}}]
                  full - subset, paired; `metrics` on the rows that the subset leaves something,
                  `common` on those of the full input: only it compares subsets with each other
    strata        [{task, pattern, patients, metrics: {primary: E}}]  full input, by natural pattern
    ranking       {task: {metric, modalities: [{modality, drop: E, drop_if_present: E}]}}
                  on common rows; drop.p_holm is adjusted over all drops of the document
    calibration   {task: [{label, curve: [{predicted, observed, low, high}], brier: {...},
                  ece, error: E, band: [low, high]}]}   band: of ece, if perfectly calibrated
    routing       {layer: see m4.eval.specialisation.describe}
    conformal, selective, groups    see m4.eval.reliance; only where there is something to say
    references    {name: {task: {metrics: {metric: E}, delta: {metric: E}, against: {other:
                  {metric: E}}, calibration: as above}}}   delta: model - name; against: name -
                  other, paired too; 'blend' is the mean of the model and boosting (m4.eval.blend)
    curves, operating_points      {task: [...]}, see m4.eval.operating
    table_one     who was studied, see m4.eval.table_one; absent where nobody gave values
    parameters    [step and digest of the best parameters, of each member]: whose these results are
    words         titles, units and definitions: m4.specs.words; absent where there are none
    attribution   {task: see m4.eval.attribution.describe}; absent unless enough subsets were swept
    monotone, next_test           {task: see m4.eval.monotone, acquire: describe}; the same

Deltas are scored on the rows that both sides score and drops are oriented so that positive means
the modality helps. Patient counts of subsets and patterns are rounded to tens, so that their
differences do not give away a cell below `min_patients`. No patient identifier is ever written.
"""

import json
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from m4 import cells, seal
from m4.eval import (
    acquire,
    attribution,
    blend,
    bootstrap,
    games,
    holm,
    metrics,
    monotone,
    operating,
    specialisation,
    table_one,
)
from m4.eval.predictions import Predictions
from m4.eval.scorer import Scorer
from m4.eval.subsets import Subset, describe, patterns
from m4.specs import LOWER_IS_BETTER, DataSpec, TaskSpec

SCHEMA = 1


def summary(predictions: Predictions, spec: DataSpec) -> dict[str, float]:
    """'task/metric' -> value on the first subset, without intervals; NaN where undefined."""
    return {
        f"{task.name}/{name}": value.value
        for task in _tasks(predictions, spec)
        for name, value in Scorer(predictions, spec, task).point(0).items()
    }


def thresholds(predictions: Predictions, spec: DataSpec) -> dict[str, np.ndarray]:
    """Per binary or multilabel task the cut that maximises F1 on this (validation) split."""
    full = predictions.full()
    return {
        task.name: metrics.choose_threshold(
            predictions.label[task.name],
            predictions.scored(spec, task, full),
            predictions.prediction[task.name][full],
        )
        for task in _tasks(predictions, spec)
        if task.kind in ("binary", "multilabel")
    }


# many small products and trees: more threads would only wait for each other
@threadpool_limits.wrap(limits=1)
def compose(
    predictions: Predictions,
    spec: DataSpec,
    subsets: list[Subset],
    *,
    split: str,
    draws: int = 1000,
    seed: int = 0,
    min_patients: int = 10,
    thresholds: Mapping[str, np.ndarray] | None = None,
    references: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    cuts: operating.Cuts | None = None,
    values: Mapping[str, table_one.Values] | None = None,
    costs: Mapping[str, float] | None = None,
    budget: float = 0.0,
) -> dict[str, Any]:
    """Everything the report shows about one split; the schema is in the module's docstring.

    `subsets` belong to `predictions.subsets`, the full one first, those of kind 'more' last: they
    get no scores. `thresholds` come from `thresholds(validation predictions)`, `cuts` from
    `operating.choose` of them; `references` holds per model and task f[rows of split, C]; `values`
    who was studied, by split, this one last. `costs` and `budget` are those of the next test, see
    `m4.eval.acquire`. Where boosting is among the references, the blend with it becomes one more.
    """
    if [s.keep for s in subsets] != [tuple(map(bool, keep)) for keep in predictions.subsets]:
        raise ValueError("subsets are not those that were swept")
    subsets = [subset for subset in subsets if subset.kind != "more"]
    patient, fold = predictions.patient, predictions.fold
    sampled = bootstrap.resample(patient, fold, draws=draws, seed=seed)
    references = with_blend(predictions, spec, references or {})
    out: dict[str, Any] = _head(predictions, spec, subsets, min_patients=min_patients)
    out |= {
        "split": split,
        "bootstrap": {"draws": draws, "level": 0.95, "seed": seed, "unit": "patient"},
        "routing": specialisation.describe(predictions, spec, min_patients=min_patients, seed=seed),
        "references": {name: {} for name in references},
    }
    for task in _tasks(predictions, spec):
        cut = (thresholds or {}).get(task.name)
        scorer = Scorer(predictions, spec, task, sampled, cut, min_patients)
        _add_task(out, scorer, subsets, references)
    ranked = [row for found in out["ranking"].values() for row in found["modalities"]]
    holm.add(row["drop"] for row in ranked)
    own = {"cuts": cuts, "min_patients": min_patients}
    out["curves"], out["operating_points"] = operating.describe(predictions, spec, sampled, **own)
    if found := table_one.describe(values or {}, predictions, spec, min_patients=min_patients):
        out["table_one"] = found
    _add_games(out, predictions, spec, sampled, {"costs": costs, "budget": budget})
    return out


def with_blend(
    predictions: Predictions, spec: DataSpec, references: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Mapping[str, np.ndarray]]:
    """The references and, last, the blend of the model and boosting, if there is one."""
    found = blend.row(predictions, spec, references)
    return {**references, **({blend.NAME: found} if found else {})}


def _head(predictions: Predictions, spec: DataSpec, subsets: list[Subset], *, min_patients: int):
    """What the split is, and the places of what is computed of it."""
    patients, names, fold = (
        len(np.unique(predictions.patient)),
        spec.modality_names,
        predictions.fold,
    )
    few = patients < min_patients
    return {
        "schema": SCHEMA,
        "split": "",
        "rows": None if few else len(predictions.uid),
        "patients": None if few else patients,
        "bootstrap": {},
        "folds": 1 if fold is None else len(np.unique(fold)),
        "min_patients": min_patients,
        "modalities": list(names),
        "tasks": {},
        "patterns": pooled_patterns(spec, predictions, min_patients),
        "subsets": [
            {"label": s.label, "kind": s.kind, "keep": [*compress(names, s.keep)]} for s in subsets
        ],
        "scores": [],
        "deltas": [],
        "strata": [],
        "ranking": {},
        "calibration": {},
    }


def write(results: Mapping[str, Any], workdir: Path) -> Path:
    """Write `workdir/results/<split>.json` atomically and return its path."""
    path = Path(workdir) / "results" / f"{results['split']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    return seal.write(Path(workdir), f"results/{path.name}", text)


def pooled_patterns(spec: DataSpec, predictions: Predictions, min_patients: int) -> list[dict]:
    """Natural presence patterns; those below `min_patients` patients are pooled into one.

    The pool takes in the next smallest pattern until it is large enough itself, so that it cannot
    be had by subtraction.
    """
    found = patterns(predictions.present, predictions.patient)
    shown = [(keep, n) for keep, n in found if n >= min_patients]
    pool = sum(n for _, n in found) - sum(n for _, n in shown)
    while shown and 0 < pool < min_patients:
        pool += shown.pop()[1]
    rows = [
        {"label": describe(spec.modality_names, k), "patients": cells.tens(n)} for k, n in shown
    ]
    if pool:
        large = pool >= min_patients
        rows.append({"label": "other patterns", "patients": cells.tens(pool) if large else None})
    return rows


def _add_task(out: dict, scorer: Scorer, subsets: list[Subset], references: Mapping) -> None:
    task = scorer.task.name
    out["tasks"][task] = scorer.card()
    out["calibration"][task] = scorer.curves()
    _add_subsets(out, scorer, subsets)
    _add_strata(out, scorer)
    out["ranking"][task] = _ranking(scorer)
    rows = {
        name: np.asarray(p[task])[scorer.predictions.uid]
        for name, p in references.items()
        if task in p
    }
    for name, found in scorer.against(rows).items():
        out["references"][name][task] = found


def _add_subsets(out: dict, scorer: Scorer, subsets: list[Subset]) -> None:
    primary = scorer.primary
    for s, subset in enumerate(subsets):
        mask = scorer.mask(s)
        here, (common_full, common, all_rows) = scorer.subset(s, mask), _common(scorer, s)
        row = {"task": scorer.task.name, "subset": subset.label, "patients": _count(scorer, mask)}
        on_common = {primary: scorer.estimates(common, all_rows)[primary]}
        out["scores"].append({**row, "metrics": scorer.estimates(here, mask), "common": on_common})
        if s != scorer.full:  # a row that counts under a subset counts under the full input
            full = scorer.subset(scorer.full, mask, scorer.headline)
            deltas = scorer.differences(full, here, mask, scorer.headline)
            on_common = scorer.differences(common_full, common, all_rows, [primary])
            out["deltas"].append({**row, "metrics": deltas, "common": on_common})


def _add_games(
    out: dict, predictions: Predictions, spec: DataSpec, draws: bootstrap.Draws, spent: Mapping
) -> None:
    """Sections that need more subsets than those that have scores, by task."""
    for task in _tasks(predictions, spec):
        own = {"min_patients": out["min_patients"], "seed": out["bootstrap"]["seed"]}
        game = games.play(predictions, spec, task, draws, **own)
        if game is None:
            continue
        found = {"attribution": attribution.describe(game), "monotone": monotone.describe(game)}
        found["next_test"] = acquire.describe(game, **spent, seed=out["bootstrap"]["seed"])
        for name, section in found.items():
            if section:
                out.setdefault(name, {})[task.name] = section


def _common(scorer: Scorer, s: int, has_N1: np.ndarray | None = None):
    """The primary metric of full input and subset on the full input's rows, and their cells; with
    `has_N1` of those that have a modality.

    Where a subset leaves hardly anybody, on the few it leaves: they are suppressed then. So it is
    for maps, of which nothing can be said without an image.
    """
    few = 0 < scorer.patients(scorer.mask(s)) < scorer.min_patients
    mask = scorer.mask(s) if few or scorer.task.kind == "segmentation" else scorer.mask_full
    mask = mask if has_N1 is None else mask & has_N1
    own = mask, [scorer.primary]
    return scorer.subset(scorer.full, *own), scorer.everywhere(s, *own), mask


def _add_strata(out: dict, scorer: Scorer) -> None:
    present = scorer.predictions.present
    for keep, _ in patterns(present, scorer.predictions.patient):
        mask = scorer.mask_full & (present == keep).all(axis=1)[:, None]
        count = _count(scorer, mask)
        if count is None:
            continue
        scored = scorer.estimates(scorer.subset(scorer.full, mask, [scorer.primary]), mask)
        name = describe(scorer.spec.modality_names, keep)
        row = {"task": scorer.task.name, "pattern": name, "patients": count}
        out["strata"].append({**row, "metrics": {scorer.primary: scored[scorer.primary]}})


def _ranking(scorer: Scorer) -> dict[str, Any]:
    """Loss of the primary metric when one modality is removed; the largest first."""
    predictions, name, rows = scorer.predictions, scorer.primary, []
    for m, modality in enumerate(scorer.spec.modality_names):
        keep_M = np.arange(predictions.subsets.shape[1]) != m
        (found,) = np.nonzero((predictions.subsets == keep_M).all(axis=1))
        if not found.size:
            continue
        s = int(found[0])
        row: dict[str, Any] = {"modality": modality}
        for key, has_N1 in (("drop", None), ("drop_if_present", predictions.present[:, [m]])):
            *sides, mask = _common(scorer, s, has_N1)
            a, b = sides[::-1] if name in LOWER_IS_BETTER else sides
            row[key] = scorer.differences(a, b, mask, [name])[name]
        rows.append(row)
    rows.sort(key=lambda row: -(-np.inf if row["drop"]["value"] is None else row["drop"]["value"]))
    return {"metric": name, "modalities": rows}


def _count(scorer: Scorer, mask_NL: np.ndarray) -> int | None:
    """Patients behind a number, rounded to tens; None below the smallest cell."""
    count = scorer.patients(mask_NL)
    return cells.shown(count, scorer.min_patients)


def _tasks(predictions: Predictions, spec: DataSpec) -> list[TaskSpec]:
    return [task for task in spec.tasks if task.name in predictions.prediction]
