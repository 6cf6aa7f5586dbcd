"""The model card of a bundle: what it is for, on whom it was tried, how well it did, its limits.

Everything is of the run's own results and the words of its data set; nothing is of one patient.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import ml_collections

from m4 import USE, __version__
from m4.data.apply import Trained
from m4.eval.report.purpose import ASKED, NO_DEVICE, UNSAID
from m4.specs import DataSpec
from m4.specs import words as words_of


def make(
    config: ml_collections.ConfigDict,
    spec: DataSpec,
    known: Trained,
    results: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The card as JSON. `spec` is the one with words, `results` of the test split if there are."""
    about = words_of(spec)["about"]
    tested = {}
    if results is not None:
        full = {s["task"]: s for s in results["scores"] if s["subset"] == _full(results)}
        tested = {
            "split": results["split"],
            "patients": results["patients"],
            "tasks": {t: one["metrics"] for t, one in full.items()},
        }
        named = ("operating_points", "strata", "conformal", "groups")
        tested |= {name: results[name] for name in named if name in results}
    return {
        "use": USE,
        "notice": NO_DEVICE,
        "about": {name: about.get(field) or UNSAID for field, name in ASKED.items()},
        "model": {
            "method": config.method.name,
            "fidelity": config.method.get("fidelity", "m4"),
            "seed": config.seed,
            "m4": __version__,
            "exported": datetime.date.today().isoformat(),
        },
        "data": {
            "title": about.get("title") or known.manifest["name"],
            **{key: known.manifest[key] for key in ("name", "version", "licence", "fingerprint")},
            "training_patients": known.manifest["splits"]["train"]["patients"],
        },
        "tested": tested or None,
    }


def markdown(card: Mapping[str, Any], spec: DataSpec) -> str:
    """The card for people."""
    model, data = card["model"], card["data"]
    lines = [f"# {_plain(data['title'])}: {model['method']}", "", card["use"] + ".", ""]
    lines += [card["notice"], "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_plain(text)} |" for name, text in card["about"].items()]
    lines += [f"| Licence of the data | {_plain(data['licence'])} |"]
    lines += [f"| Trained on | {data['training_patients']} patients |", "", "## Outcomes", ""]
    lines += ["| task | kind | unit | definition |", "|---|---|---|---|"]
    for t in spec.tasks:
        lines.append(f"| {_plain(t.name)} | {t.kind} | {_plain(t.unit)} | {_plain(t.definition)} |")
    lines += ["", "## How well it did", ""]
    tested = card["tested"]
    if tested is None:
        lines += ["It was not evaluated: no results were in the work directory."]
    else:
        lines += [
            f"On the {tested['split']} split, {tested['patients']} patients, 95 % intervals.",
            "",
        ]
        lines += ["| task | metric | value | interval |", "|---|---|---|---|"]
        for task, metrics in tested["tasks"].items():
            for name, one in metrics.items():
                if one["value"] is not None:
                    span = "" if one["low"] is None else f"{one['low']:.3g} to {one['high']:.3g}"
                    lines.append(f"| {_plain(task)} | {name} | {one['value']:.3g} | {span} |")
    return "\n".join(lines) + "\n"


def _full(results: Mapping[str, Any]) -> str:
    return next(s["label"] for s in results["subsets"] if s["kind"] == "full")


def _plain(text: object) -> str:
    """A text of data in a table of Markdown: no markup, no line break."""
    for mark, word in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("\n", " ")):
        text = str(text).replace(mark, word)
    return str(text)
