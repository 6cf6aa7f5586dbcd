"""The section on conditions other than those of the test split: `stress.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from m4.eval.report import plots, words
from m4.eval.report.parts import (
    Fold,
    How,
    Note,
    Plot,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    estimate,
    number,
)

MEANT = {
    "mcar": "missing at random",
    "mar": "missing where another modality is high",
    "mnar": "missing where its own values are high",
    "blocks": "modalities missing together",
    "gaps": "gaps in time",
    "drift": "drift of values",
    "noise": "noise on values",
}
HOW = (
    "The same model on the same test patients, a part of whose data was taken away or altered. A "
    "drop is what the score loses by that, with its 95 % interval. A rate is a share of modalities "
    "or of positions, for drift and noise a number of standard deviations."
)


def section(run: Run) -> Section | None:
    """What each condition costs each task; None without a stress test."""
    found = run.stress
    if not found or found.get("schema") != 1 or not found.get("conditions"):
        return None
    rows = found["conditions"]
    panels = [
        {"title": f"{task}: {words.metric_name(card['metric'])} lost", "lines": _lines(rows, task)}
        for task, card in found["tasks"].items()
    ]
    panels = [panel for panel in panels if panel["lines"]]
    verdicts = [v for task in found["tasks"] if (v := _verdict(rows, task, found))]
    left = [f"{kind}: {why}" for kind, why in found.get("left_out", {}).items()]
    notes = [Note(f"Left out: {'; '.join(left)}.")] if left else []
    parts = (
        How(HOW),
        *([Plot(_plot(panels))] if panels else []),
        *verdicts,
        Fold("Every condition", (_table(rows, found),)),
        *notes,
    )
    return Section("stress", "Under other conditions", parts)


def _lines(rows: list[Any], task: str) -> dict[str, Any]:
    """Kind -> (rates, drops)."""
    found: dict[str, Any] = {}
    for row in rows:
        drop = row["tasks"].get(task, {}).get("drop", {})
        if drop.get("value") is not None:
            found.setdefault(row["kind"], []).append((row["rate"], drop["value"]))
    return {kind: tuple(zip(*points, strict=True)) for kind, points in found.items()}


def _plot(panels: Sequence[Mapping[str, Any]]) -> str:
    """A panel a task: the drop over the rate, a line a kind."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)

    def paint(figure: Figure) -> None:
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            for colour, (kind, (rates, drops)) in zip(
                plots.CYCLE * 9, panel["lines"].items(), strict=False
            ):
                axes.plot(rates, drops, color=colour, lw=1.5, marker="o", ms=3, label=kind)
            axes.axhline(0, color=plots.SOFT, lw=1, ls=":")
            axes.set_title(panel["title"])
            axes.set_xlabel("rate")
            axes.grid(axis="y")
            axes.legend(ncols=2)

    alt = "what scores lose, by condition and rate"
    return plots.draw(paint, plots.WIDTH / 3 * columns, 2.6 * rows + 0.2, alt)


def _verdict(rows: list[Any], task: str, found: Any) -> Verdict | None:
    """The smallest rate of each kind that costs something beyond chance."""
    metric, sure, known = words.metric_name(found["tasks"][task]["metric"]), {}, False
    for row in rows:
        drop = row["tasks"].get(task, {}).get("drop", {})
        known |= drop.get("value") is not None
        if plots.beyond_chance({"low": None, "value": 0.0} | drop):
            sure.setdefault(row["kind"], (row["rate"], drop["value"]))
    if not known:
        return Verdict(f"{task}: not enough data to say.", "unknown")
    if not sure:
        return Verdict(f"{task}: no condition tried costs {metric} beyond chance.", "level")
    told = [
        f"{MEANT.get(kind, kind)} from {rate:g} on ({words.text(value)})"
        for kind, (rate, value) in sure.items()
    ]
    return Verdict(f"{task}: what costs {metric} beyond chance is {', '.join(told)}.", "bad")


def _table(rows: list[Any], found: Any) -> Table:
    columns, lines, tasks = ["condition", "rate", "lost"], [], found["tasks"]
    for task, card in tasks.items():
        columns += [f"{task} {words.metric_name(card['metric'])}", f"{task} drop"]
    kind = None
    for row in rows:
        told = [row["tasks"].get(task, {}) for task in tasks]
        cells = [
            MEANT.get(row["kind"], row["kind"]), f"{row['rate']:g}",
            number(row["lost"], percent=True),
        ]  # fmt: skip
        for one in told:
            cells += [estimate(one.get("score")), estimate(one.get("drop"), sign=True)]
        lines.append(Row(cells, begins=row["kind"] != kind))
        kind = row["kind"]
    return Table("stress", columns, lines)
