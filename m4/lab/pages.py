"""A study as one self-contained page, and its verdicts as CSV and LaTeX beside it.

Everything is read from the study's folder; neither data nor devices are needed.

Letters: E experts, M modalities.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from m4 import atomic, cells
from m4.errors import DataError
from m4.eval.report import page, plots, words
from m4.lab import judged, verdict

COLUMNS = ("family", "arm", "null", "reference", "seeds", "mean", "sd", "difference", "low", "high")
COLUMNS += ("p", "p_equal", "smallest", "verdict", "within_margin")
COLUMNS += ("modality", "pattern", "cluster")
COLUMNS += ("agreement", "chance", "collapsed", "without_first", "shuffled", "router", "active")
COLUMNS += ("total", "flops_per_step", "step_s", "compile_s", "tokens_per_expert")
MAX_MAPS = 24  # expert x modality maps that are drawn


def write(out: Path, found: Mapping[str, str]) -> list[Path]:
    """Writes `texts`; returns where."""
    for name, text in found.items():
        if (out / name).is_dir():
            raise DataError(f"{out / name}: is a folder; move it away")
        atomic.write(out / name, text)
    return [out / name for name in found]


def texts(
    out: Path,
    study: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    said: Mapping[Any, Any],
    notes: Sequence[str] = (),
) -> dict[str, str]:
    """report.html, verdicts.csv and verdicts.tex of rows and what is `said` of them."""
    tables = table(found, said, out)
    notes = [*judged.remarks(study, found), *notes]
    made = {"report.html": html(study, found, tables, notes), "verdicts.csv": as_csv(tables)}
    return made | {"verdicts.tex": as_latex(study, tables)}


def table(found: Sequence[Mapping[str, Any]], said: Mapping[Any, Any], out: Path):
    """{family: lines}, a line for every arm by `COLUMNS`, the best first."""
    tables = {}
    for family, own in judged.families(found).items():
        agree = judged.agreements(own, out)
        arms, name = judged.by_label(own), _name(family)
        tables[name] = [
            _line(name, label, list(arms[label].values()), judgement, agree.get(label, {}))
            for label, judgement in judged.by_quality(said[family])
        ]
    return tables


def _line(family, label, own, said, agree) -> dict[str, Any]:
    first, experts = own[0], [layer for row in own for layer in row["experts"].values()]
    know = [layer["information"] for layer in experts if "information" in layer]
    needs = [row["necessity"] for row in own if row["necessity"]]
    sizes = {name: first["parameters"][name] for name in ("router", "active", "total")}
    return {
        "family": family,
        "arm": label,
        "null": first["null"],
        "reference": first["reference"],
        "seeds": len(said["seeds"]),
        "mean": said["mean"],
        "sd": said["sd"],
        "difference": said.get("value"),
        **{name: said.get(name) for name in ("low", "high", "p", "p_equal", "smallest")},
        "verdict": said["verdict"],
        "within_margin": said.get("within"),
        **{g: _mean([k.get(g) for k in know]) for g in ("modality", "pattern", "cluster")},
        **{name: agree.get(name) for name in ("agreement", "chance")},
        "collapsed": _mean([layer["collapsed"] for layer in experts]),
        **{n: _mean([need[n] for need in needs]) for n in ("without_first", "shuffled")},
        **sizes,
        "flops_per_step": first["flops_per_step"],
        "step_s": _mean([row["step_s"] for row in own]),
        "compile_s": max(row["compile_s"] for row in own),
        "tokens_per_expert": first["tokens_per_expert"],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _name(family: tuple) -> str:
    return ", ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in family) or "all arms"


def as_csv(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """All lines of all families; a name that a spreadsheet would compute is quoted as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list[str](COLUMNS), extrasaction="ignore")
    writer.writeheader()
    for lines in tables.values():
        for line in lines:
            safe = {k: cells.uncomputed(v) for k, v in line.items() if isinstance(v, str)}
            writer.writerow({**line, **safe})
    return text.getvalue()


def as_latex(study: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A tabular of every family, for a paper with booktabs."""
    margin = study["plan"]["margin"]
    text = [f"% margin {margin['value']:g} {study['metric']}: {' '.join(margin['reason'].split())}"]
    for name, lines in tables.items():
        text += [f"% {name}", r"\begin{tabular}{lrrrrl}", r"\toprule"]
        text += [r"arm & mean & difference & 95\,\% interval & $p$ & verdict \\", r"\midrule"]
        for line in lines:
            first = [_latex(line["arm"]), _tex(line["mean"]), _tex(line["difference"], "+")]
            interval = "" if line["low"] is None else f"[{line['low']:+.4f}, {line['high']:+.4f}]"
            told = "reference" if line["reference"] else line["verdict"] or "--"
            told = verdict.in_words(told, bool(line["within_margin"]))
            text.append(" & ".join([*first, interval, _p(line["p"]), told]) + r" \\")
        text += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(text)


def _tex(value: float | None, sign: str = "") -> str:
    return "--" if value is None else f"${value:{sign}.4f}$"


def _p(value: float | None) -> str:
    return "$<0.0001$" if value is not None and value < 1e-4 else _tex(value)


def _latex(text: str) -> str:
    """A text as it is. One that begins with a bracket would be the length of the break before."""
    return "{}" * text.lstrip().startswith("[") + _escaped(text)


def _escaped(text: str) -> str:
    for mark in "\\{}":
        text = text.replace(mark, " ")
    return (
        "".join(f"\\{c}" if c in "&%$#_" else c for c in text).replace("~", " ").replace("^", " ")
    )


def html(study, found, tables, notes: Sequence[str]) -> str:
    """The page as a string."""
    environment = page.templates("m4.lab")
    environment.globals |= {"text": words.text, "short": _short}
    run = {(row["arm"], row["seed"]) for row in found}
    lacking = [
        f"{arm['label']} ({', '.join(f'{k}={v}' for k, v in arm['family'].items())}), seeds "
        + ", ".join(str(s) for s in study["seeds"] if (arm["key"], s) not in run)
        for arm in study["arms"]
        if any((arm["key"], s) not in run for s in study["seeds"])
    ]
    lacking += [f"{name}: {why}" for name, why in study["left"].items()]
    return environment.get_template("lab.html.j2").render(
        css=page.style(),
        study=study,
        margin=study["plan"]["margin"],
        tables=tables,
        notes=list(notes),
        lacking=lacking,
        runs=len(found),
        cpu=sum(row["cpu_s"] for row in found),
        versions=sorted({f"m4 {row['m4']}, {row['device']}" for row in found}),
        pictures=[(title, Markup(svg)) for title, svg in _pictures(study, found, tables)],
    )


def _short(value: float | None) -> str:
    """A count or a small number in few characters."""
    if value is None:
        return "–"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 10 * size or value >= size > 1e3:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _pictures(study, found, tables):
    """(title, SVG) of everything that can be drawn of these rows."""
    families = list(tables)
    arms = list(dict.fromkeys(line["arm"] for lines in tables.values() for line in lines))
    wanted = {
        "difference to the reference": "difference",
        "adjusted information about the modality": "modality",
        "share of runs that collapsed": "collapsed",
    }
    for title, field in wanted.items():
        grid = np.full((len(arms), len(families)), np.nan)
        for f, lines in enumerate(tables.values()):
            for line in lines:
                if line[field] is not None:
                    grid[arms.index(line["arm"]), f] = line[field]
        if np.isfinite(grid).any():
            yield title, _heat(grid, arms, families, title, centred=field == "difference")
    cost = [line for lines in tables.values() for line in lines if line["mean"] is not None]
    if cost:
        yield "quality against cost", _costs(cost, study["metric"])
    yield from _curves(found)
    yield from _maps(found)


def _heat(grid, arms, families, title: str, *, centred: bool) -> str:
    most = float(np.nanmax(np.abs(grid))) or 1.0

    def paint(figure) -> None:
        axes = figure.add_subplot()
        colours, low = ("RdBu_r", -most) if centred else ("Blues", 0.0)
        axes.imshow(grid, cmap=colours, vmin=low, vmax=most, aspect="auto")
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xticks(range(len(families)), families)
        axes.tick_params(length=0)
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * most
                colour = "white" if dark else plots.INK
                axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=8, color=colour)

    width = min(plots.WIDTH, 2.6 + 1.3 * len(families))
    return plots.draw(paint, width, 0.26 * len(arms) + 0.7, title)


def _costs(lines, metric: str) -> str:
    def paint(figure) -> None:
        axes = figure.add_subplot()
        for line in lines:
            colour = plots.SOFT if line["null"] else plots.BLUE
            axes.plot(1e3 * line["step_s"], line["mean"], "o", color=colour, ms=4)
            name = f"{line['arm']} {line['family'].rpartition('=')[2]}"
            axes.annotate(name, (1e3 * line["step_s"], line["mean"]), fontsize=7, xytext=(4, 2),
                          textcoords="offset points")  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds a step")
        axes.set_ylabel(metric)
        axes.grid()

    return plots.draw(paint, plots.WIDTH, 4.2, "quality against cost")


def _curves(found):
    """How early the experts' choices are those of the last checkpoint, a panel for each family."""
    panels = []
    for family, own in judged.families(found).items():
        lines = {}
        for label, arm in judged.by_label(own).items():
            curves = [
                v for row in arm.values() for k, v in row["saturation"].items() if k != "steps"
            ]
            steps = next(iter(arm.values()))["saturation"]["steps"]
            if curves and all(len(c) == len(steps) for c in curves):
                lines[label] = (steps, np.mean(curves, axis=0))
        if lines:
            panels.append({"title": _name(family), "lines": lines})
    if panels:
        title = "share of the last checkpoint's choices that are made already"
        yield title, plots.curves(panels, alt="saturation")


def _maps(found):
    """Expert by modality, of each arm's first seed."""
    first = {(row["arm"]): row for row in sorted(found, key=lambda row: -row["seed"])}
    shown = sorted(first.values(), key=lambda row: (str(row["family"]), row["label"]))[:MAX_MAPS]
    for row in shown:
        for name, layer in row["experts"].items():
            if "by_modality" not in layer or len(layer["by_modality"][0]) > 64:
                continue
            grid = np.array(layer["by_modality"])
            share = grid / np.maximum(grid.sum(1, keepdims=True), 1e-30)
            lines = [{"label": f"{m}", "share": list(r)} for m, r in enumerate(share)]
            family = _name(tuple(row["family"].items()))
            title = f"{row['label']}, {family}, layer {name}: experts by modality"
            experts = list(range(grid.shape[1]))
            yield (
                title,
                plots.heat([(title, lines)], experts, len(experts), alt=f"map {row['arm']}"),
            )
