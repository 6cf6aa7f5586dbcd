"""The section on an ensemble: what averaging several models gains, and what it costs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from m4.eval.report import words
from m4.eval.report.parts import (
    How,
    Mood,
    Note,
    Part,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    estimate,
)
from m4.specs import LOWER_IS_BETTER

HOW = (
    "The figures of this page are of the average of several models. Each row is a score: the mean "
    "of the models by themselves with the interval that another seed and other patients would "
    "give, the ensemble, and what it gains on the same patients. The last column asks the same as "
    "if the models had been trained with other seeds."
)
KINDS = {"seeds": "seeds of one configuration", "folds": "folds of a cross-validation"}
KINDS |= {"runs": "runs"}


def section(run: Run) -> Section | None:
    """What the ensemble gains in every task; None for a run of one model."""
    found = (run.results or {}).get("ensemble")
    if not found:
        return None
    rows: list[Row] = []
    parts: list[Part] = [How(HOW)]
    for task, card in found["tasks"].items():
        for n, (metric, e) in enumerate(card.items()):
            rows.append(_row(task, metric, e, begins=n == 0))
        parts += _verdict(task, card)
    head = ["", "mean of members", "ensemble", "gain", "gain, other seeds"]
    parts.append(Table("ensemble", head, rows))
    parts.append(Note(cost(found)))
    return Section("ensemble", "What the ensemble gains", parts)


def cost(found: Mapping[str, Any]) -> str:
    """How many models there are, and what they took."""
    count = found["members"]
    text = f"{count} {KINDS.get(found['kind'], 'models')}"
    if found["kind"] == "seeds":
        text += f" ({', '.join(map(str, found['seeds']))})"
    if found["hours"] is not None:
        text += f"; training them took {found['hours']:.2f} h by their logs, without compiling"
    return f"{text}. A prediction takes {count} times that of one model."


def _row(task: str, metric: str, e: Mapping[str, Any], *, begins: bool) -> Row:
    name = f"{task}, {words.metric_name(metric)} {words.arrow(metric)}"
    member = estimate(e["member"])
    if e["deviation"] is not None:
        text = f"{member.text} ± {e['deviation']:.3f}"
        member = dataclasses.replace(member, text=text)
    gains = (estimate(e[key], sign=True) for key in ("gain", "gain_over_seeds"))
    return Row([name, member, estimate(e["ensemble"]), *gains], begins=begins)


def _verdict(task: str, card: Mapping[str, Any]) -> list[Part]:
    """One sentence on the first metric of a task."""
    metric, e = next(iter(card.items()), ("", None))
    if e is None or e["gain"].get("low") is None:
        return []
    low, high = e["gain"]["low"], e["gain"]["high"]
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    mood: Mood = "good" if low > 0 else "bad" if high < 0 else "level"
    said = {"good": "gains", "bad": "loses", "level": "neither clearly gains nor loses"}[mood]
    return [Verdict(f"{task}: averaging {said} in {words.metric_name(metric)}", mood)]
