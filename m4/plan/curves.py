"""Tables and a plot of a scaling study.

Efficiency is the speed of a chip over that of one chip (or the smallest count) with the same rows
in weak scaling, and the speed-up over the growth in strong scaling. What a step takes longer than
perfect scaling is `exposed`: messages that nothing hides, imbalance, work that is not split.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from m4.eval.report import plots
from m4.plan import measure, roofline, topology
from m4.plan.facts import Facts

HEAD = ("kind", "chips", "mesh", "rows", "tokens/s", "ms a step [quartiles]", "efficiency")
HEAD += ("exposed", "MFU", "peak MB a chip", "planned / measured", "loss", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One point."""

    scaling: str  # weak or strong
    chips: int
    axis: str
    found: Mapping[str, Any]


def figures(rows: Sequence[Row], row: Row) -> dict[str, Any]:
    """A line of the table, against the smallest measured point of its kind."""
    found, facts = row.found, Facts(**row.found["facts"])
    chips = topology.of_count(found["kind"] or "cpu", row.chips)
    planned = roofline.time(facts, chips, across=found["across"]).worst
    out: dict[str, Any] = {
        "scaling": row.scaling,
        "chips": row.chips,
        "mesh": facts.mesh,
        "rows": found["rows"],
        "measured": found["measured"],
        "peak_bytes": facts.peak_bytes,
        "planned_s": planned,
        "flops": facts.flops,
        "model_flops": facts.model["flops"],
    }
    if not found["measured"]:
        return out | {"step_s": planned, "kind": found["kind"]}
    low, median, high = np.percentile(found["step_s"], [25, 50, 75])
    first = min(
        (r for r in rows if r.scaling == row.scaling and r.found["measured"]),
        key=lambda r: r.chips,
    )
    base, growth = float(np.median(first.found["step_s"])), row.chips / first.chips
    ideal = base if row.scaling == "weak" and row.axis != "tensor" else base / growth
    achieved, mfu = measure.rates(found)
    return out | {
        "device": found["device"],
        "step_s": median,
        "quartiles_s": [low, high],
        "rows_per_s": found["rows_per_s"],
        "tokens_per_s": found["tokens_per_s"],
        "efficiency": ideal / median,
        "exposed": max(0.0, 1 - ideal / median),
        "flops_per_s": achieved,
        "mfu": mfu,
        "peak_bytes": found["peak_bytes"],
        "planned_over_measured": planned / median,
        "loss": found["loss"],
    }


def table(document: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for one in document:
        mesh = " ".join(f"{axis}={n}" for axis, n in one["mesh"].items() if n > 1) or "-"
        cells = [one["scaling"], one["chips"], mesh, one["rows"]]
        ms = 1e3 * one["step_s"]
        if one["measured"]:
            low, high = (1e3 * s for s in one["quartiles_s"])
            mfu = "-" if one["mfu"] is None else f"{100 * one['mfu']:.1f} %"
            cells += [f"{one['tokens_per_s']:.4g}", f"{ms:.3g} [{low:.3g}, {high:.3g}]"]
            cells += [f"{one['efficiency']:.2f}", f"{100 * one['exposed']:.0f} %", mfu]
            cells += [f"{one['peak_bytes'] / 1e6:.1f}", f"{one['planned_over_measured']:.3g}"]
            cells += [f"{one['loss']:.7g}", ""]
        else:
            cells += ["", f"{ms:.3g}", "", "", "", f"{one['peak_bytes'] / 1e6:.1f}", "", ""]
            cells += [f"planned for {one['kind']}, not measured"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    devices = sorted({one["device"] for one in document if one["measured"]})
    return [*lines, "", f"Measured on {', '.join(devices) or 'nothing'}."]


def said(found: Mapping[str, Any]) -> str:
    """A point in a line, while others are still measured."""
    if not found["measured"]:
        return f"planned for {found['kind']}"
    return f"{1e3 * float(np.median(found['step_s'])):.3g} ms a step, loss {found['loss']:.6g}"


def plot(document: Sequence[Mapping[str, Any]]) -> str:
    """Tokens per second over chips, with perfect scaling beside it, as SVG."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, scaling in zip(plots.CYCLE, ("weak", "strong"), strict=False):
            points = [one for one in document if one["scaling"] == scaling and one["measured"]]
            if not points:
                continue
            chips = [one["chips"] for one in points]
            speed = [one["tokens_per_s"] for one in points]
            ideal = [speed[0] * n / chips[0] for n in chips]
            axes.plot(chips, speed, "o-", color=colour, label=f"{scaling} scaling")
            axes.plot(chips, ideal, ":", color=colour, label=f"{scaling}, perfect")
        axes.set(xlabel="chips", ylabel="tokens/s", xscale="log", yscale="log")
        if axes.has_data():
            axes.legend()

    return plots.draw(paint, 6.0, 4.0, "tokens per second over chips")
