"""The section on answering only where the model is sure: error by the share that is answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from m4.eval.report import plots, words
from m4.eval.report.parts import (
    Fold,
    How,
    Part,
    Plot,
    Row,
    Run,
    Section,
    Table,
    Text,
    count,
    estimate,
    number,
)

HOW = (
    "A model need not answer for everybody. The surest answers come first, the others go to a"
    " person: the curve is the share of wrong answers among those that are given. Look at the"
    " classes, too: the rare one is often the unsure one, and hardly answered at all."
)


def section(run: Run) -> Section | None:
    """A curve and a table for every question with classes."""
    found = (run.results or {}).get("selective")
    if not found:
        return None
    named = [(_name(task, q), q) for task, questions in found["tasks"].items() for q in questions]
    parts: list[Part] = [How(HOW), Plot(_plot(named))]
    for name, question in named:
        parts += [Text(_sentence(name, question))]
        parts += [Fold(f"{name}, by the share answered", [_table(name, question, run.smallest)])]
    return Section("selective", "Answering only where the model is sure", parts)


def _name(task: str, question: Mapping[str, Any]) -> str:
    label = question["label"]
    return label if label == task else f"{task}, {label}"


def _sentence(name: str, question: Mapping[str, Any]) -> str:
    """What answering single-class sets alone would mean."""
    single = question["single"]
    answered, error = (words.percent(single[key]["value"]) for key in ("answered", "error"))
    shares = zip(question["classes"], single["classes"], strict=True)
    each = ", ".join(f"{words.percent(share)} of {k!r}" for k, share in shares if share is not None)
    whole = words.percent(question["curve"][0]["error"]["value"])
    text = f"{name}: {whole} of all answers are wrong. Answering only where one class is in the set"
    return f"{text} would answer {answered} of patients ({each}), {error} of them wrongly."


def _table(name: str, question: Mapping[str, Any], smallest: int) -> Table:
    head = ["answered", "sure from", "n", "wrong", "Brier score"]
    head += [f"of {k!r}" for k in question["classes"]]
    rows = [
        Row(
            [
                number(point["share"], percent=True),
                number(point["sure"]),
                count(point["patients"], smallest),
                estimate(point["error"], percent=True),
                estimate(point["brier"]),
                *(number(share, percent=True) for share in point["classes"]),
            ]
        )
        for point in question["curve"]
    ]
    return Table(f"selective_{name}", head, rows)


def _plot(named: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Share wrong over the share answered, a panel per question."""
    columns = min(3, len(named))
    lines = -(-len(named) // columns)

    def paint(figure: Figure) -> None:
        for i, (name, question) in enumerate(named):
            axes = figure.add_subplot(lines, columns, i + 1)
            points = [p for p in question["curve"] if p["error"]["value"] is not None]
            x = [p["share"] for p in points]
            for end in ("low", "high"):
                ends = [p["error"][end] for p in points]
                if None not in ends:
                    axes.plot(x, ends, color=plots.SKY, lw=0.8)
            axes.plot(x, [p["error"]["value"] for p in points], "o-", color=plots.BLUE, ms=4)
            axes.axhline(question["area"]["random"], color=plots.SOFT, lw=1, ls=":")
            axes.set_title(name)
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
            axes.set_xlabel("share answered")
            if i % columns == 0:
                axes.set_ylabel("share wrong")

    alt = "share of wrong answers over the share of patients answered"
    return plots.draw(paint, plots.WIDTH / 3 * columns, 2.5 * lines + 0.2, alt)
