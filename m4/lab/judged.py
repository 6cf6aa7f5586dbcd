"""Rows of a study -> a verdict on every arm, family by family."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.lab import verdict
from m4.lab.documents import read_json, rows
from m4.specs import LOWER_IS_BETTER


def families(found: Sequence[Mapping[str, Any]]) -> dict[tuple, list[Mapping[str, Any]]]:
    """Rows by the values of all axes but the compared one, in the order of the values."""
    out: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in sorted(found, key=lambda row: [(str(type(v)), v) for v in row["family"].values()]):
        out.setdefault(tuple(row["family"].items()), []).append(row)
    return out


def by_label(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Rows of a family: label -> seed -> row."""
    out: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in found:
        out.setdefault(row["label"], {})[row["seed"]] = row
    return out


def judge(found: Sequence[Mapping[str, Any]], margin: float) -> dict[str, dict[str, Any]]:
    """Arms of one family against its reference, by the seeds that both have.

    label -> {seeds, mean, sd, value, low, high, p, p_equal, smallest, within, verdict}; the
    reference, and arms with fewer than two seeds in common with it, have no verdict.
    """
    arms = by_label(found)
    reference = next((r["label"] for r in found if r["reference"]), None)
    out: dict[str, dict[str, Any]] = {}
    common: dict[tuple[int, ...], list[str]] = {}
    for label, own in arms.items():
        values = {s: row["value"] for s, row in own.items() if row["value"] is not None}
        sd = float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None
        out[label] = {"seeds": sorted(values), "sd": sd, "verdict": None}
        out[label]["mean"] = float(np.mean(list(values.values()))) if values else None
        out[label]["metric"] = next(iter(own.values()))["metric"]
        if reference is not None and label != reference:
            both = tuple(s for s in sorted(values) if s in arms[reference])
            if len(both) > 1:
                common.setdefault(both, []).append(label)
    if reference is None or not common:
        return out
    # All arms of a family are corrected together, though some may lack seeds.
    labels = [label for group in common.values() for label in group]
    least = min(common, key=len)
    seeds = [s for s in least if all(s in group for group in common)]
    if len(seeds) < 2:
        return out
    lower = out[reference]["metric"].rpartition("/")[2] in LOWER_IS_BETTER
    base = np.array([arms[reference][s]["value"] for s in seeds])
    difference = [[arms[label][s]["value"] for s in seeds] - base for label in labels]
    told = verdict.compare(np.array(difference), margin=margin, lower_is_better=lower)
    for i, label in enumerate(labels):
        numbers = ("value", "low", "high", "p", "p_equal", "smallest")
        out[label] |= {name: float(getattr(told, name)[i]) for name in numbers}
        out[label] |= {"within": bool(told.within[i]), "verdict": str(told.verdict[i])}
        out[label]["seeds"] = seeds
    return out


def lines(out: Path) -> list[str]:
    """The verdicts as text, a table for every family."""
    plan, found = read_json(out / "study.json"), rows(out)
    margin = plan["plan"]["margin"]
    text = [f"margin   {margin['value']:g} {plan['metric']}: {margin['reason']}"]
    for family, own in families(found).items():
        head = ", ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in family) or "all"
        text += ["", f"{head}: {len(own)} runs"]
        for label, said in sorted(judge(own, margin["value"]).items(), key=lambda x: x[1]["mean"]):
            line = f"  {label:20} {said['mean']:8.4f} ± {said['sd'] or 0:.4f}"
            if said["verdict"]:
                line += f"  {said['value']:+.4f} [{said['low']:+.4f}, {said['high']:+.4f}]"
                line += f"  {said['verdict']}{', within the margin' * said['within']}"
            text.append(line)
    return text
