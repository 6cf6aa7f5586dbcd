"""What an ensemble gains over its members: the section `ensemble` of a results document.

    ensemble  {members: k, kind, seeds: [i], hours: f | null, tasks: {task: {metric: {
                  each: [f | null], deviation: f | null,      of the members
                  member: E, ensemble: E,                      their mean, and the ensemble
                  gain: E with p, gain_over_seeds: E}}}}       ensemble - mean of members

`E` is {value, low, high}. `gain` is paired: every draw of patients is the same for all, and the
members are taken as they are. `member` and `gain_over_seeds` are over seeds and patients
(`m4.eval.over_seeds`), as if other seeds had been drawn: what to expect of training again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m4.eval import bootstrap, over_seeds
from m4.eval.bootstrap import number
from m4.eval.metrics import Value
from m4.eval.predictions import Predictions
from m4.eval.scorer import Scored, Scorer
from m4.specs import DataSpec, TaskSpec


def describe(
    found: Sequence[Predictions],
    mean: Predictions,
    spec: DataSpec,
    *,
    draws: int,
    seed: int,
    min_patients: int,
) -> dict[str, Any]:
    """`tasks` of the section: every headline metric, of the full input."""
    sampled = bootstrap.resample(mean.patient, mean.fold, draws=draws, seed=seed)
    own = sampled, None, min_patients
    out = {}
    for task in spec.tasks:
        if task.name in mean.prediction:
            each = [Scorer(part, spec, task, *own) for part in found]
            out[task.name] = _task(each, Scorer(mean, spec, task, *own))
    return out


def _task(each: list[Scorer], whole: Scorer) -> dict[str, Any]:
    """The metrics of one task."""
    mask, names = whole.mask_full, whole.headline
    scored = whole.subset(whole.full, mask)
    parts = [scorer.subset(scorer.full, mask) for scorer in each]
    names = [name for name in names if name in scored.draws and not name.startswith("f1")]
    average = Scored(
        {n: Value(float(np.mean([p.values[n].value for p in parts]))) for n in names},
        {n: np.mean([p.draws[n] for p in parts], axis=0) for n in names},
        {},
    )
    told, members = whole.estimates(scored, mask), [whole.estimates(p, mask) for p in parts]
    gain = whole.differences(scored, average, mask, names)
    gains = [whole.differences(scored, part, mask, names) for part in parts]
    return {
        name: {
            "each": [m[name]["value"] for m in members],
            "deviation": _deviation([m[name]["value"] for m in members]),
            "member": _over_seeds([m[name] for m in members]),
            "ensemble": told[name],
            "gain": gain[name],
            "gain_over_seeds": _over_seeds([g[name] for g in gains]),
        }
        for name in names
    }


def _over_seeds(estimates: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the estimates with its interval over seeds and patients."""
    values = [e["value"] for e in estimates]
    if any(value is None for value in values):
        return {"value": None, "low": None, "high": None}
    low, high = over_seeds.interval(estimates) or (None, None)
    return {"value": number(float(np.mean(values))), "low": number(low), "high": number(high)}


def _deviation(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    enough = len(known) == len(values) > 1
    return number(float(np.std(known, ddof=1))) if enough else None


def lines(section: Mapping[str, Any], tasks: Sequence[TaskSpec]) -> list[str]:
    """The gain in the first metric of every task, as text."""
    out = []
    for task in tasks:
        card = section["tasks"].get(task.name)
        if not card or task.auxiliary:
            continue
        name, e = next(iter(card.items()))
        if e["gain"]["value"] is None:
            continue
        low, high = e["gain"]["low"], e["gain"]["high"]
        span = f" [{low:+.3f}, {high:+.3f}]" if low is not None else ""
        out.append(
            f"{task.name}: {name} {e['ensemble']['value']:.3f}, its members' mean"
            f" {e['member']['value']:.3f}; gain {e['gain']['value']:+.3f}{span}"
        )
    return out
