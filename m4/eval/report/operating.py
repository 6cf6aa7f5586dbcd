"""The section on what a prediction is good for at a cut, and how far risks can be taken as said."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from m4.eval.report import plots
from m4.eval.report.parts import (
    Cell,
    Fold,
    Heading,
    How,
    Note,
    Part,
    Plot,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    estimate,
    number,
)
from m4.eval.report.purpose import titled

HOW = (
    "A cut turns risks into alerts. ROC: of those with the outcome how many are found (up), for "
    "how many false alarms among the others (right). Precision and recall: how many alerts are "
    "right, for how many found; the dotted line is what guessing gives. Decision: what acting on "
    "the model gains at the risk from which one would act, beside acting on everybody or on "
    "nobody. Bands are 95 % intervals at each point."
)
POINTS = ("cut", "alerts per 100", "sensitivity", "specificity", "PPV", "NPV")
FIXED = "Cuts named “risk” were fixed before; the others were chosen on the validation split."


def section(run: Run) -> Section | None:
    """Curves, operating points and recalibration of each question; None without."""
    found = (run.results or {}).get("curves")
    if not found:
        return None
    assert run.results is not None
    points = run.results.get("operating_points", {})
    said, parts = run.results.get("words"), [How(HOW)]
    for task, curves in found.items():
        auxiliary = run.results["tasks"].get(task, {}).get("auxiliary", False)
        unit = (said or {}).get("tasks", {}).get(task, {}).get("unit", "")
        own: list[Part] = []
        for i, curve in enumerate(curves):
            at = points.get(task, [])
            some = _question(task, curve, at[i] if i < len(at) else None, unit)
            own += [Fold(curve["label"], some)] if len(curves) > 1 else some
        name = titled(said, task)
        parts += [Fold(f"{name}, auxiliary", own)] if auxiliary else [Heading(name), *own]
    return Section("operating", "At a cut", parts)


def _question(task: str, curve: Mapping[str, Any], points, unit: str) -> list[Part]:
    if "fit" in curve:
        parts: list[Part] = [Plot(_fit(curve, unit))] if len(curve["fit"]) > 1 else []
        return [*parts, _recalibration(task, curve), _recalibrated(curve, unit)]
    parts = [Plot(_curves(curve))]
    if verdict := _decision(curve):
        parts.append(verdict)
    if points and points["points"]:
        per = "patients" if points["per"] == "patients" else "predictions"
        rows = [_row(row) for row in points["points"]]
        columns = ["at", *POINTS]
        columns[2] = f"alerts per 100 {per}"
        parts += [Table(f"operating_{task}_{curve['label']}", columns, rows), Note(FIXED)]
    return [*parts, _recalibration(task, curve), _recalibrated(curve)]


def _row(row: Mapping[str, Any]) -> Row:
    cells = [estimate(row[m]) for m in ("alerts", "sensitivity", "specificity", "ppv", "npv")]
    hidden = row["sensitivity"]["value"] is None
    cut = Cell("too few patients", value=None) if hidden else number(row["cut"])
    return Row([row["name"], cut, *cells])


def _recalibration(task: str, curve: Mapping[str, Any]) -> Table:
    rows = [Row([name, estimate(curve[name])]) for name in ("slope", "intercept")]
    return Table(f"recalibration_{task}_{curve['label']}", ["calibration", curve["label"]], rows)


def _recalibrated(curve: Mapping[str, Any], unit: str = "") -> Verdict:
    """One sentence on slope and intercept."""
    slope, intercept = curve["slope"], curve["intercept"]
    if slope["low"] is None or intercept["low"] is None:
        return Verdict("Not enough data to judge the calibration.", "unknown")
    what = f"predictions in {unit}" if unit else "predictions" if "fit" in curve else "risks"
    found = []
    if slope["high"] < 1:
        found.append(f"{what} are too extreme (slope below 1)")
    elif slope["low"] > 1:
        found.append(f"{what} are too timid (slope above 1)")
    if intercept["low"] > 0:
        found.append(f"{what} are too low on the whole (intercept above 0)")
    elif intercept["high"] < 0:
        found.append(f"{what} are too high on the whole (intercept below 0)")
    if found:
        return Verdict(f"Calibration is off: {', and '.join(found)}.", "bad")
    return Verdict("Slope and intercept give no sign of miscalibration.", "level")


def _decision(curve: Mapping[str, Any]) -> Verdict | None:
    """Where acting on the model gains something for sure."""
    rows = curve["decision"]
    if not rows:
        return Verdict("Not enough data for a decision curve.", "unknown")
    sure = [
        row["risk"] for row in rows if row["gain"]["low"] is not None and row["gain"]["low"] > 0
    ]
    if not sure:
        text = "At no risk is acting on the model better for sure than on everybody or nobody."
        return Verdict(text, "level")
    ends = f"{sure[0]:.0%} and {sure[-1]:.0%}"
    if len(sure) == 1:
        return Verdict(
            f"Acting on the model gains most plainly at a risk of {sure[0]:.0%}.", "good"
        )
    text = f"Acting on the model gains for whoever would act at a risk between {ends}"
    gaps = sum(sure[0] <= row["risk"] <= sure[-1] for row in rows) - len(sure)
    return Verdict(f"{text}{', with gaps' if gaps else ''}.", "good")


def _band(axes, xs, rows, colour) -> None:
    lows = [row["low"] for row in rows]
    if all(low is not None for low in lows) and lows:
        axes.fill_between(xs, lows, [row["high"] for row in rows], color=colour, alpha=0.15, lw=0)


def _curves(curve: Mapping[str, Any]) -> str:
    def paint(figure: Figure) -> None:
        roc, pr, decision, risks = figure.subplots(1, 4)
        for axes, rows, base in ((roc, curve["roc"], None), (pr, curve["pr"], curve["prevalence"])):
            rows = [row for row in rows if row["y"] is not None and row["x"] is not None]
            xs = [row["x"] for row in rows]
            _band(axes, xs, rows, plots.BLUE)
            axes.plot(xs, [row["y"] for row in rows], color=plots.BLUE, lw=1.6)
            ends = ([0, 1], [0, 1]) if base is None else ([0, 1], [base, base])
            axes.plot(*ends, color=plots.SOFT, lw=1, ls=":")
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        roc.set(title="ROC", xlabel="1 − specificity", ylabel="sensitivity")
        pr.set(title="precision–recall", xlabel="recall (sensitivity)", ylabel="precision (PPV)")
        _paint_decision(decision, curve["decision"])
        _paint_risks(risks, curve["risks"])

    alt = f"ROC, precision-recall, decision curve and histogram of risks of {curve['label']}"
    return plots.draw(paint, plots.WIDTH * 1.15, 2.9, alt)


def _paint_decision(axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set(title="decision", xlabel="risk at which one acts", ylabel="net benefit")
    if not rows:
        return
    xs, gains = [row["risk"] for row in rows], [row["benefit"] for row in rows]
    _band(axes, xs, gains, plots.BLUE)
    axes.plot(xs, [gain["value"] for gain in gains], color=plots.BLUE, lw=1.6, label="model")
    axes.plot(xs, [row["all"] for row in rows], color=plots.ORANGE, lw=1.2, ls="--", label="all")
    axes.axhline(0, color=plots.SOFT, lw=1, ls=":", label="none")
    top = max(gain["high"] if gain["high"] is not None else gain["value"] for gain in gains)
    axes.set_ylim(-0.25 * max(top, 1e-3), 1.15 * max(top, 1e-3))
    axes.legend(loc="upper right")


def _paint_risks(axes, bands: Sequence[Mapping[str, Any]]) -> None:
    shares = [band["share"] or 0 for band in bands]
    axes.bar([b["low"] for b in bands], shares, width=0.045, align="edge", color=plots.BLUE)
    for band in bands:
        if band["share"] is None:
            axes.text(band["low"] + 0.022, 0, "<", ha="center", fontsize=7, color=plots.SOFT)
    axes.set(title="predicted risks", xlabel="risk (<: few patients)", ylabel="share", xlim=(0, 1))


def _fit(curve: Mapping[str, Any], unit: str) -> str:
    rows, ends = curve["fit"], f", {unit}" if unit else ""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        xs = [row["predicted"] for row in rows]
        lows = [row["observed"] - row["low"] for row in rows]
        highs = [row["high"] - row["observed"] for row in rows]
        line = [min(xs), max(xs)]
        axes.plot(line, line, color=plots.SOFT, lw=1, ls=":")
        ys = [row["observed"] for row in rows]
        axes.errorbar(xs, ys, yerr=[lows, highs], fmt="o", color=plots.BLUE, ms=5, lw=1.2)
        axes.set(xlabel=f"predicted{ends} (median of a tenth)", ylabel=f"observed{ends}")
        axes.set_title("predicted and observed: medians, with quartiles of the observed")
        axes.grid()

    return plots.draw(paint, 5.6, 3.3, f"predicted and observed {curve['label']}")
