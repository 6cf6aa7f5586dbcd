"""Rows of a study -> a verdict on every arm, family by family."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.errors import DataError
from m4.lab import paired, special, study, verdict
from m4.specs import LOWER_IS_BETTER

PAIRS = 10  # of seeds of an arm that are compared


def families(found: Sequence[Mapping[str, Any]]) -> dict[tuple, list[Mapping[str, Any]]]:
    """Rows by the values of all axes but the compared one, in the order of the values."""
    out: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in sorted(found, key=lambda row: [*map(_order, row["family"].values())]):
        out.setdefault(tuple((k, study.plain(v)) for k, v in row["family"].items()), []).append(row)
    return out


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, before all else."""
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, json.dumps(value, sort_keys=True)


def by_quality(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """What `judge` says, the best arm first and arms without a mean last."""

    def place(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
        mean, metric = item[1]["mean"], item[1]["metric"]
        lower = metric.rpartition("/")[2] in LOWER_IS_BETTER
        return mean is None, 0.0 if mean is None else mean if lower else -mean

    return sorted(found.items(), key=place)


def by_label(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Rows of a family: label -> seed -> row."""
    out: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in found:
        out.setdefault(row["label"], {})[row["seed"]] = row
    return out


def judge(
    found: Sequence[Mapping[str, Any]],
    margin: float,
    kept: Path | None = None,
    *,
    seeds: Sequence[int] = (),
    planned: int = 0,
) -> dict[str, dict[str, Any]]:
    """Arms of one family against its reference, by the `seeds` that were planned.

    With the folder of `kept` predictions over seeds x patients, else over seeds alone. label ->
    {seeds, mean, sd, value, low, high, p, p_equal, smallest, within, verdict}. The reference has no
    verdict; without all of the seeds, of an arm or of the reference, there is none either, so that
    nobody stops when a difference looks sure. p is corrected for all `planned` arms of the family.
    """
    arms = by_label(found)
    reference = next((row["label"] for row in found if row["reference"]), None)
    out = {label: _alone(own) for label, own in arms.items()}
    if reference is None or len(arms) < 2:
        return out
    _require_alike(found, reference)
    seeds = sorted(seeds or out[reference]["seeds"])
    whole = [label for label in arms if {*seeds} <= {*out[label]["seeds"]}]
    labels = [label for label in whole if label != reference]
    if reference not in whole or not labels or len(seeds) < 2:
        return out
    lower = out[reference]["metric"].rpartition("/")[2] in LOWER_IS_BETTER
    base = np.array([arms[reference][s]["value"] for s in seeds])
    difference = [[arms[label][s]["value"] for s in seeds] - base for label in labels]
    spread, patients = {}, None
    if kept is not None:
        task = paired.task_of(arms[reference][seeds[0]])
        runs = {
            label: [_kept(kept, arms[label][s], task.name) for s in seeds]
            for label in [reference, *labels]
        }
        metric = out[reference]["metric"].rpartition("/")[2]
        spread, patients = paired.patients_sd(runs, reference, task, metric)
    told = verdict.compare(
        np.array(difference),
        margin=margin,
        lower_is_better=lower,
        patients_sd_A=np.array([spread.get(label, 0.0) for label in labels]),
        num_patients=patients,
        planned=planned,
    )
    for i, label in enumerate(labels):
        numbers = ("value", "low", "high", "p", "p_equal", "smallest")
        out[label] |= {name: float(getattr(told, name)[i]) for name in numbers}
        out[label] |= {"within": bool(told.within[i]), "verdict": str(told.verdict[i])}
        out[label] |= {"common": seeds, "patients": patients}
    return out


def _alone(own: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of an arm over its seeds."""
    values = {s: row["value"] for s, row in own.items() if row["value"] is not None}
    numbers = list(values.values())
    return {
        "seeds": sorted(values),
        "mean": float(np.mean(numbers)) if numbers else None,
        "sd": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
        "metric": next(iter(own.values()))["metric"],
        "verdict": None,
    }


def _require_alike(found: Sequence[Mapping[str, Any]], reference: str) -> None:
    """Raises DataError where a row has another metric, or other files, than the reference."""
    first = {row["seed"]: row for row in found if row["label"] == reference}
    for row in found:
        own, name = first.get(row["seed"]), f"{row['label']}, seed {row['seed']}"
        if own is None:
            continue
        if row["metric"] != own["metric"]:
            raise DataError(f"{name}: is judged by {row['metric']}, {reference} by {own['metric']}")
        if row["config"]["data"] == own["config"]["data"] and row["data"] != own["data"]:
            raise DataError(
                f"{name}: was trained on other files than {reference}, which were replaced in"
                " between; delete the rows that were made before, and the same command runs them"
            )


def remarks(plan: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the verdicts must know: what rows were made by, seeds that came later."""
    said = mixed(found)
    if (first := plan.get("first_seeds", plan["seeds"])) != plan["seeds"]:
        added = [seed for seed in plan["seeds"] if seed not in first]
        said.append(
            f"seeds {', '.join(map(str, added))} were added when there were rows of"
            f" {', '.join(map(str, first))}: if the verdicts led to that, p is too small"
        )
    return said


def mixed(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be said where rows were not made by the same code on the same kind of device."""
    kinds = {
        "versions of m4's code": {(row["m4"], row["code"]) for row in found},
        "sets of packages": {json.dumps(row["versions"], sort_keys=True) for row in found},
        "kinds of devices": {row["device"] for row in found},
        "ways to train seeds together": {row["together"] == "vmap" for row in found},
    }
    return [
        f"the rows were made by {len(own)} {what}: a difference between arms may be theirs"
        for what, own in kinds.items()
        if len(own) > 1
    ]


def _kept(folder: Path, row: Mapping[str, Any], task: str) -> paired.Kept:
    name = f"predictions/{row['arm']}-s{row['seed']}.npz"
    return paired.read(folder / name, task, row["files"].get(name, ""))


def agreements(found: Sequence[Mapping[str, Any]], out: Path) -> dict[str, dict[str, float]]:
    """Of every arm of a family how far its seeds agree on the last choices, and by chance.

    label -> {agreement, chance}, means over pairs of seeds and layers. Chance is how far the same
    seeds agreed before their first step: a gate that learned nothing sends like tokens alike, too.
    Seeds that draw other validation patients have no tokens in common: no pair of them counts.
    """
    told = {}
    for label, own in by_label(found).items():
        chosen: dict[str, list[tuple[np.ndarray, np.ndarray, str]]] = {}
        for seed in sorted(own):
            start = f"selections/{own[seed]['arm']}-s{seed}-"
            for name, digest in sorted(own[seed]["files"].items()):
                if name.startswith(start):
                    kept = special.dense(paired.arrays(out / name, digest))
                    one = kept[0], kept[-1], own[seed]["data"]
                    chosen.setdefault(name.removeprefix(start), []).append(one)
        pairs = [
            {"agreement": special.agreement(a[1], b[1]), "chance": special.agreement(a[0], b[0])}
            for runs in chosen.values()
            for a, b in _spread_out([*itertools.combinations(runs, 2)])
            if a[2] == b[2] and a[0].shape == b[0].shape
        ]
        if pairs:
            told[label] = {k: float(np.mean([p[k] for p in pairs])) for k in pairs[0]}
    return told


def _spread_out(pairs: list[Any]) -> list[Any]:
    """At most `PAIRS`, from the first to the last: no seed is in most of them."""
    return pairs[:: -(-len(pairs) // PAIRS) or 1]


def every(plan: Mapping[str, Any], found: Sequence[Mapping[str, Any]], out: Path) -> dict[Any, Any]:
    """`judge` of every family, by its `families` name."""
    margin, asked = plan["plan"]["margin"]["value"], families(plan["arms"])
    return {
        family: judge(own, margin, out, seeds=plan["seeds"], planned=len(asked[family]) - 1)
        for family, own in families(found).items()
    }


def lines(
    plan: Mapping[str, Any], found: Sequence[Mapping[str, Any]], said: Mapping[Any, Any]
) -> list[str]:
    """The verdicts of `every` as text, a table for every family."""
    margin = plan["plan"]["margin"]
    text = [f"margin   {margin['value']:g} {plan['metric']}: {margin['reason']}"]
    text += [f"m4: warning: {line}" for line in remarks(plan, found)]
    for family, own in families(found).items():
        head = ", ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in family) or "all"
        text += ["", f"{head}: {len(own)} runs"]
        for label, one in by_quality(said[family]):
            line = f"  {label:20} {_number(one['mean'], 8)} ± {_number(one['sd'])}"
            lacking = len({*plan["seeds"]} - {*one["seeds"]})
            if lacking:
                line += f"  no verdict: {len(one['seeds'])} of {len(plan['seeds'])} seeds"
            if one["verdict"]:
                line += f"  {one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
                line += f"  {verdict.in_words(one['verdict'], one['within'])}"
            text.append(line)
    there = {row["arm"] for row in found}
    lacking = (arm for arm in plan["arms"] if arm["key"] not in there)
    return text + [f"not run  {study.full_name(arm['label'], arm['family'])}" for arm in lacking]


def _number(value: float | None, width: int = 0) -> str:
    """Four decimals; of what is not defined a dash."""
    return f"{'–' if value is None else f'{value:.4f}':>{width}}"
