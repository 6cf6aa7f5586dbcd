"""The section on what is predicted, for whom and for what: as TRIPOD+AI and model cards ask."""

from m4.eval.report import words
from m4.eval.report.parts import Fold, How, Note, Part, Row, Run, Section, Table

ASKED = {  # field of `m4.specs.About` -> what the page calls it
    "use": "Intended use",
    "not_for": "Not for",
    "participants": "Participants",
    "setting": "Setting",
    "period": "Dates",
    "source": "Source of data",
    "limits": "Known limits",
}
UNSAID = "not stated: the data set has no words for it"
NO_DEVICE = (
    "Research use only. Not a medical device: not for diagnosis, treatment or any decision about a "
    "patient. No patient or member of the public was involved in the design of this software; a "
    "study with it should say who was in its own."
)


def section(run: Run) -> Section | None:
    """Use, people, outcomes and predictors in words; None without results."""
    if run.results is None:
        return None
    said = run.results.get("words", {})
    about = said.get("about", {})
    rows = [Row([name, about.get(field) or UNSAID]) for field, name in ASKED.items()]
    parts: list[Part] = [
        How("What the predictions are meant for and whom they were tried on; nothing here is a "
            "number, but every number below holds for these people alone."),
        Table("purpose", ["", about.get("title") or (run.data or {}).get("name", "data")], rows,
              plain=True),
        _outcomes(run, said.get("tasks", {})),
    ]  # fmt: skip
    if inputs := _inputs(run, said.get("modalities", {})):
        parts.append(Fold("Inputs, with units", (inputs,)))
    return Section("purpose", "What it is for", (*parts, Note(NO_DEVICE)))


def _outcomes(run: Run, said) -> Table:
    assert run.results is not None
    rows = []
    for name, card in run.results["tasks"].items():
        own = said.get(name, {})
        what = own.get("definition") or UNSAID
        rows.append(Row([name, own.get("title", ""), card["kind"], own.get("unit", ""), what]))
    return Table("outcomes", ["task", "title", "kind", "unit", "definition"], rows, plain=True)


def _inputs(run: Run, said) -> Table | None:
    rows = []
    for modality in (run.data or {}).get("schema", {}).get("modalities", []):
        own = said.get(modality["name"], {})
        title = own.get("title", "")
        features = modality.get("features") or []
        if not features:
            rows.append(Row([modality["name"], title, "", modality["kind"], ""], begins=True))
        for i, feature in enumerate(features):
            word = own.get("features", {}).get(feature, {})
            names = (modality["name"], title) if i == 0 else ("", "")
            line = [*names, feature, word.get("title", ""), word.get("unit", "")]
            rows.append(Row(line, begins=i == 0))
    columns = ["modality", "title", "feature", "meaning", "unit"]
    return Table("inputs", columns, rows, plain=True) if rows else None


def titled(run_words, task: str) -> str:
    """'ihm48' -> 'Death in hospital (ihm48)', or the name alone."""
    title = (run_words or {}).get("tasks", {}).get(task, {}).get("title", "")
    return f"{title} ({task})" if title else task


def in_unit(run_words, task: str, metric: str) -> str:
    """'MAE, days': the name of a metric, with the unit where it has the target's."""
    unit = (run_words or {}).get("tasks", {}).get(task, {}).get("unit", "")
    name = words.metric_name(metric)
    return f"{name}, {unit}" if unit and metric in ("mae", "rmse") else name
