"""The section on prediction sets and intervals: do they hold what they promise, and for whom?"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import binom

from m4.eval.coverage import inside, value
from m4.eval.report import plots, words
from m4.eval.report.parts import (
    Cell,
    Fold,
    How,
    Note,
    Part,
    Plot,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    count,
    number,
)

NAMES = {
    "pooled": "one threshold for all",
    "class": "by class",
    "pattern": "by modalities present",
    "pattern_class": "by modalities present and class",
    "nested": "nested masks (CP-MDA)",
}
MAX_CELLS = 30  # in a plot
LONGEST = 56  # characters of a combination there


def section(run: Run) -> Section | None:
    """Coverage of every question, by the method that is recommended and by the others."""
    found = (run.results or {}).get("conformal")
    if not found:
        return None
    promise = words.percent(1 - found["alpha"])
    parts: list[Part] = [How(_how(found, promise))]
    for task, questions in found["tasks"].items():
        for question in questions:
            parts += _question(task, question, promise, run)
    return Section("conformal", "Prediction sets that hold what they promise", parts)


def _how(found: Mapping[str, Any], promise: str) -> str:
    """What a set is, and on whom it was calibrated."""
    own = found["calibrated"] == "calibration"
    who = (
        f"about {found['patients']:,} patients who neither trained nor chose the model"
        if own
        else f"other test patients in turn (about {found['patients']:,} each time); set"
        " data.calibration to keep patients of their own for it"
    )
    return (
        f"Instead of one answer the model may give a set of classes, or an interval, that holds the"
        f" truth for {promise} of patients. Thresholds come from {who}. A share of patients covered"
        " below its band promised more than it held; the band is what chance allows."
    )


def _question(task: str, question: Mapping[str, Any], promise: str, run: Run) -> list[Part]:
    label, methods, smallest = question["label"], question["methods"], run.smallest
    name = label if label == task else f"{task}, {label}"
    size = "classes in the set" if question["unit"] == "classes" else "width"
    rows = []
    for method, judged in methods.items():
        kind = "model" if method == question["chosen"] else ""
        for cell in [judged["all"], *judged["classes"]]:
            if cell is not None:
                first = cell["label"] == "everybody" and "class" not in cell
                shown = [NAMES[method] if first else "", cell.get("class", cell["label"])]
                rows.append(Row([*shown, *_cells(cell, smallest)], kind, begins=first))
    head = ["thresholds", "patients", "n", "covered", "chance allows", size]
    worst = {NAMES[m]: words.percent(judged["worst"]) for m, judged in methods.items()}
    best = methods[question["chosen"]]
    cells = best["cells"] or best["patterns"]
    parts: list[Part] = [_verdict(name, question, promise), Table(f"coverage_{name}", head, rows)]
    if cells:
        alt = f"share of patients covered for {name}, by modalities present"
        fine = [Row([c["label"], c.get("class", ""), *_cells(c, smallest)]) for c in cells]
        table = Table(f"coverage_{name}_cells", ["modalities", "class", *head[2:]], fine)
        every = (run.results or {}).get("modalities", [])
        shown = [{**c, "label": _short(c["label"], every)} for c in cells[:MAX_CELLS]]
        parts.append(Plot(_plot(shown, promise, alt)))
        parts.append(Fold("By modalities present", [table]))
    said = "; ".join(f"{method} {share}" for method, share in worst.items())
    return [*parts, Note(f"Least covered combination of modalities: {said}."), *_notes(question)]


def _short(label: str, every: Sequence[str]) -> str:
    """A combination by what it lacks where that is shorter, and cut; the table has all of it."""
    kept = label.split(" + ")
    if {*kept} <= {*every}:
        label = min(label, f"no {', '.join(m for m in every if m not in kept)}", key=len)
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _cells(cell: Mapping[str, Any], smallest: int) -> list[Cell]:
    low, high = map(words.percent, cell["coverage"]["band"])
    share = cell["coverage"]["value"]
    covered = Cell(_share(cell)) if share is None else number(share, percent=True)
    if not inside(cell["coverage"]):
        covered = Cell(f"{covered.text} ✗", value=covered.value)
    shown = number(cell["size"])
    return [count(cell["patients"], smallest), covered, Cell(f"{low} to {high}"), shown]


def _verdict(name: str, question: Mapping[str, Any], promise: str) -> Verdict:
    """What one threshold for all does to the worst class, and what the chosen method does."""
    methods = question["methods"]
    bad, of = methods[question["chosen"]]["outside"]
    if not of:
        return Verdict(f"{name}: too few patients in any cell to say.", "unknown")
    allowed = int(binom.ppf(0.95, of, 0.025))  # a band is left on this side by 1 cell of 40
    text = f"{name}: {of - bad} of {of} cells hold the promised {promise}"
    pooled, best = (methods[m]["classes"] for m in ("pooled", question["chosen"]))
    known = [c for c in pooled if value(c) is not None]
    if known and best:
        worst = min(known, key=lambda c: value(c) or 0.0)
        now = next(c for c in best if c["class"] == worst["class"])
        before, after = _share(worst), _share(now)
        text += f"; with one threshold for all, {worst['class']!r} would be covered in {before}"
        text += f", now {after}"
    return Verdict(f"{text}.", "good" if bad <= allowed and 2 * bad < of else "bad")


def _share(cell: Mapping[str, Any]) -> str:
    share = value(cell)
    return cell["coverage"].get("note", "") if share is None else words.percent(share)


def _notes(question: Mapping[str, Any]) -> list[Part]:
    if "nested" not in question["methods"]:
        return []
    return [
        Note(
            "Nested masks compare patients on the modalities that both have; that is valid only if"
            " what is missing does not depend on the values or the outcome."
        )
    ]


def _plot(cells: Sequence[Mapping[str, Any]], promise: str, alt: str) -> str:
    """A dot per cell, its band behind it."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, cell in enumerate(cells):
            low, high = cell["coverage"]["band"]
            good = inside(cell["coverage"])
            axes.plot([low, high], [y, y], color=plots.GRID, lw=7, solid_capstyle="butt", zorder=1)
            colour, mark = (plots.BLUE, "o") if good else (plots.RED, "X")
            if (share := value(cell)) is not None:
                axes.plot(share, y, mark, color=colour, ms=6, zorder=3)
        names = [f"{c['label']}: {c['class']}" if "class" in c else c["label"] for c in cells]
        axes.set_yticks(range(len(cells)), names)
        axes.set_ylim(len(cells) - 0.4, -0.6)
        axes.set_xlabel(f"share covered (promised: {promise})")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")

    return plots.draw(paint, plots.WIDTH, 0.26 * len(cells) + 0.8, alt)
