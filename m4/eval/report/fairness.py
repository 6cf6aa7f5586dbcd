"""The section on groups of people: is the model as good for all of them?"""

from collections.abc import Mapping
from typing import Any

from m4.eval.report import words
from m4.eval.report.parts import (
    Cell,
    Fold,
    Heading,
    How,
    Note,
    Part,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    count,
    estimate,
    number,
)

HOW = (
    "Group columns stand beside the data and were no input by themselves. Of each metric the two"
    " groups that are furthest apart are compared on the same draws of patients; a gap is beyond"
    " chance if it would be even after all pairs that were looked at (Holm, 5 %). Of an outcome"
    " that is yes or no, coverage is of those who have it, and n counts them alone."
)
OF_OUTCOME = "with the outcome, covered by the set"  # of a binary task
NAMES = {
    "bias": "predicted less observed",
    "covered": "covered by the set or interval",
    "answered": "answered with one class",
    "set_size": "classes in the set",
    "absent": "share of modalities absent",
}
SHARES = ("covered", "answered", "absent")
CHANCE = 0.05


def section(run: Run) -> Section | None:
    """Gaps of every task first, then who is in the groups and the whole tables."""
    found = (run.results or {}).get("groups")
    if not found:
        return None
    parts: list[Part] = [How(HOW), *_who(found, run.smallest)]
    for task, columns in found["tasks"].items():
        gaps = found["gaps"].get(task, [])
        kind = (run.results or {})["tasks"][task]["kind"]
        if columns:
            parts += [Heading(task), _verdict(task, gaps, kind)]
        if gaps:
            parts.append(_gaps(task, gaps, kind))
        for column, metrics in columns.items():
            table = _table(task, column, metrics, run.smallest, kind)
            parts.append(Fold(f"{task} by {column}", [table]))
    parts.append(
        Note(
            "A difference between groups may come from who they are, what is measured of them, or"
            " the model; equal numbers are no proof of fairness, and few patients prove nothing."
        )
    )
    return Section("groups", "Groups of people", parts)


def _name(metric: str, kind: str) -> str:
    if metric == "covered" and kind == "binary":
        return OF_OUTCOME
    return NAMES.get(metric) or words.metric_name(metric)


def _who(found: Mapping[str, Any], smallest: int) -> list[Part]:
    """Patients of each category, what they lack and what experts did not take."""
    parts: list[Part] = []
    for column, own in found["columns"].items():
        first = own["categories"][0]
        head = [column, "n", *(f"no {m}" for m in first["absent"])]
        head += [f"dropped, {layer}" for layer in first["dropped"]]
        rows = [
            Row(
                [
                    row["category"],
                    count(row["patients"], smallest),
                    *(number(share, percent=True) for share in row["absent"].values()),
                    *(number(share, percent=True) for share in row["dropped"].values()),
                ]
            )
            for row in own["categories"]
        ]
        title = f"Who is in {column}, and what is absent"
        parts.append(Fold(title, [Table(f"groups_{column}", head, rows)]))
    return parts


def _verdict(task: str, gaps: list[Mapping[str, Any]], kind: str) -> Verdict:
    sure = [gap for gap in gaps if gap["p_holm"] <= CHANCE]
    if not gaps:
        return Verdict(f"{task}: too few patients to compare groups.", "unknown")
    if not sure:
        return Verdict(f"{task}: no gap between groups is beyond chance.", "level")
    texts = [
        f"{_name(gap['metric'], kind)}: {gap['more']} more than {gap['less']} by {_value(gap)}"
        for gap in sorted(sure, key=lambda gap: gap["p_holm"])
    ]
    return Verdict(f"{task}: gaps beyond chance in {'; '.join(texts)}.", "bad")


def _value(gap: Mapping[str, Any]) -> str:
    share = gap["metric"] in SHARES
    return words.percent(gap["value"]) if share else words.text(gap["value"])


def _gaps(task: str, gaps: list[Mapping[str, Any]], kind: str) -> Table:
    gaps = sorted(gaps, key=lambda gap: gap["column"])
    rows = [
        Row(
            [
                gap["column"],
                _name(gap["metric"], kind),
                f"{gap['more']} − {gap['less']}",
                estimate(gap, sign=True, percent=gap["metric"] in SHARES),
                number(gap["p_holm"]),
            ],
            "model" if gap["p_holm"] <= CHANCE else "",
            begins=i > 0 and gaps[i - 1]["column"] != gap["column"],
        )
        for i, gap in enumerate(gaps)
    ]
    return Table(f"gaps_{task}", ["groups", "metric", "furthest apart", "gap", "p (Holm)"], rows)


def _shown(row: Mapping[str, Any], metric: str) -> Cell:
    """A value with its interval, or why there is none."""
    if row["value"] is None:
        return Cell(row.get("note", ""), ends=(None, None))
    return estimate(row, percent=metric in SHARES)


def _table(task: str, column: str, metrics: Mapping[str, Any], smallest: int, kind: str) -> Table:
    rows = [
        Row(
            [
                _name(metric, kind) if i == 0 else "",
                row["category"],
                count(row["patients"], smallest),
                _shown(row, metric),
            ],
            begins=i == 0,
        )
        for metric, categories in metrics.items()
        for i, row in enumerate(categories)
    ]
    return Table(f"groups_{column}_{task}", ["metric", column, "n", "value"], rows)
