"""Runs side by side as one self-contained page: differences, all test scores, curves, settings.

Letters: A arms.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from m4 import atomic, seal
from m4.eval import damage
from m4.eval.report import page, plots, words
from m4.lab.compare import Arm, Comparison

RESULTS = "results/test.json"
CURVES = 4  # panels: the metric that is compared, then the losses and speed


def write(found: Comparison, path: Path) -> Path:
    """Writes the page; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, html(found))
    return path


def html(found: Comparison) -> str:
    """The page as a string."""
    environment = page.templates("m4.lab")
    environment.globals |= {"text": words.text}
    panels = curves(found)
    picture = plots.curves(panels, alt="curves of all arms") if panels else ""
    return environment.get_template("compare.html.j2").render(
        css=page.style(),
        found=found,
        arms=[_line(found, i) for i in range(len(found.arms))],
        scores=scores(found),
        picture=Markup(picture),
    )


def _line(found: Comparison, i: int) -> dict[str, Any]:
    """What the first table says of an arm."""
    own, told = found.values[i], found.told
    line = {"name": found.arms[i].name, "mean": float(np.mean(own)), "changes": found.changes(i)}
    line["sd"] = float(np.std(own, ddof=1)) if len(own) > 1 else None
    if i == 0:
        return line | {"reference": True}
    margin = found.margin is not None
    equal = told.verdict[i - 1] == "equivalent"
    verdict = str(told.verdict[i - 1]) if margin or not equal else "open"
    names = ("value", "low", "high", "p", "smallest")
    numbers = {name: float(getattr(told, name)[i - 1]) for name in names}
    return line | numbers | {"reference": False, "verdict": verdict}


def scores(found: Comparison) -> list[tuple[str, list[str]]]:
    """(task and metric, a cell for every arm) of all test scores with all modalities.

    Means over the seeds that all arms have.
    """
    table: dict[str, dict[int, list[float]]] = {}
    for a, arm in enumerate(found.arms):
        for seed in found.seeds:
            for name, value in _scores(arm.runs[seed]).items():
                table.setdefault(name, {}).setdefault(a, []).append(value)
    number = len(found.arms)
    return [
        (name, [f"{np.mean(cells[a]):.4f}" if a in cells else "–" for a in range(number)])
        for name, cells in table.items()
    ]


def _scores(folder: Path) -> dict[str, float]:
    try:
        if damage.differs(folder, RESULTS) or damage.of_others(folder, RESULTS):
            return {}
        document = seal.load(folder / RESULTS)
        whole = [score for score in document["scores"] if score["subset"] == "full"]
        return {
            f"{score['task']}/{name}": metric["value"]
            for score in whole
            for name, metric in score["metrics"].items()
            if metric.get("value") is not None
        }
    except (OSError, ValueError, KeyError, TypeError):  # damaged: the comparison itself stands
        return {}


def curves(found: Comparison) -> list[Mapping[str, Any]]:
    """Panels for `m4.eval.report.plots.curves`: a line for every arm, of its first common seed."""
    names = told_apart([arm.name for arm in found.arms])
    logs = {n: _log(arm, found.seeds[0]) for n, arm in zip(names, found.arms, strict=True)}
    shown = [f"val/{found.metric}", "train/loss", "train/grad_norm", "time/examples_per_s"]
    panels = []
    for name in shown[:CURVES]:
        lines = {}
        for arm, rows in logs.items():
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                lines[arm] = steps, values
        if lines:
            panels.append({"title": name, "lines": lines})
    return panels


def told_apart(names: Sequence[str]) -> Sequence[str]:
    """Folders without what all of them begin with: whole paths leave a panel no room."""
    try:
        common = os.path.commonpath(names)
    except ValueError:  # some are absolute
        return names
    return [os.path.relpath(name, common or ".") for name in names]


def _log(arm: Arm, seed: int) -> Sequence[Mapping[str, Any]]:
    lines, _ = seal.sound_lines(arm.runs[seed] / "metrics.jsonl", 0)
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]
