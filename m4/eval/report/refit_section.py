"""The section on a model that was trained on all rows: what a cross-validation lets one expect."""

from m4.eval.report import words
from m4.eval.report.parts import How, Note, Part, Row, Run, Section, Table, estimate

HOW = (
    "After cross-validation this model was trained on all of its rows, and nobody was held out. "
    "The scores here are those of the folds' models, each on patients whom it had not seen. They "
    "are what to expect of this model, which has seen more patients than any of them."
)


def section(run: Run) -> Section | None:
    """The scores out of fold; None for other models."""
    found = run.refit
    if not found or not isinstance(found.get("expected"), dict):
        return None
    rows = [
        Row([f"{task}, {words.metric_name(metric)} {words.arrow(metric)}", estimate(e)])
        for task, card in found["expected"].items()
        for metric, e in card.items()
    ]
    steps = ", ".join(map(str, found["steps"]))
    how = "their last step" if found["choose"] == "last" else "the median of their best steps"
    note = (
        f"{found['rows']:,} rows, {found['step']} steps: {how} ({found['folds']} folds: {steps})."
        " The last step was taken; nothing was chosen on these rows."
    )
    parts: list[Part] = [How(HOW), Table("refit", ["", "out of fold"], rows), Note(note)]
    return Section("refit", "Trained on all rows", parts)
