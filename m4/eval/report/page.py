"""`report.html`: one self-contained page made from the files of a workdir alone.

Reads config.json, run.json, data.json, metrics.jsonl and results/*.json; whatever is missing or
unreadable is said in its section. Needs neither JAX nor the data.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from m4 import atomic, seal
from m4.errors import all_printable
from m4.eval import damage
from m4.eval.report import (
    coverage,
    fairness,
    members_section,
    next_test_section,
    operating,
    plots,
    purpose,
    refit_section,
    sections,
    seeds,
    selective,
    stress,
    table_one,
    words,
    worth_section,
)
from m4.eval.report.parts import Run, Section

SPLITS = ("test", "val")  # which results come first
# The sections of analyses, a file of this folder each, in the order of the page; see
# `m4.eval.report.parts`. One that has nothing to show gives None.
SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    purpose.section,
    table_one.section,
    refit_section.section,
    seeds.section,
    members_section.section,
    operating.section,
    worth_section.section,
    next_test_section.section,
    coverage.section,
    selective.section,
    fairness.section,
    stress.section,
)
FIRST = ("purpose", "patients", "refit", "seeds", "ensemble")  # these come before the scores


def write(workdir: Path) -> Path:
    """Render `workdir` and write `workdir/report.html` atomically; returns its path."""
    path = Path(workdir) / "report.html"
    atomic.write(path, render(Path(workdir)))
    return path


def readable(workdir: Path) -> bool:
    """Whether there are results that can be shown."""
    return _results(workdir)[0] is not None


def templates(package: str) -> jinja2.Environment:
    """The templates of a package, which escape what they are given and know nothing unsaid."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style() -> Markup:
    """The style sheet of every page."""
    return Markup((Path(__file__).parent / "templates/report.css").read_text(encoding="utf-8"))


def render(workdir: Path) -> str:
    """The page as a string. An empty workdir gives a page that says so."""
    files = {name: _json(workdir / f"{name}.json") for name in ("config", "run", "data")}
    if damage.changed(workdir / "data.json"):
        files["data"] = None
    results, split_note = _results(workdir)
    log = _lines(workdir / "metrics.jsonl")
    warned = results["warnings"] if results and isinstance(results.get("warnings"), list) else []
    said = [*map(str, warned), *damage.lines(workdir)]
    config = files["config"] or {}
    several, apart = {}, False
    if results:
        several, apart = seeds.beside(workdir, files["config"], results["split"])
    known = {"results": results, "log": log, "note": split_note}
    known["refit"] = _undamaged(workdir, "refit.json")
    known["stress"], line = _stress(workdir, results)
    said += [line] if line else []
    found = Run(**files, **known, seeds=several, apart=apart)
    cohort = sections.cohort(files["data"], found.smallest)
    environment = templates("m4.eval.report")
    environment.filters["svg"] = Markup
    environment.globals |= {
        "text": words.text,
        "interval": words.interval,
        "arrow": words.arrow,
        "metric_name": words.metric_name,
        "cell": words.cell,
        "percent": words.percent,
    }
    made = [section for make in SECTIONS if (section := make(found))]
    return environment.get_template("report.html.j2").render(
        css=style(),
        title=sections.title(config, files["data"]),
        run=files["run"],
        config=sections.flat(config),
        cohort=cohort,
        training=sections.training(log, config),
        results=results,
        colours=plots.KIND_COLOUR,
        kinds={subset["kind"] for subset in results["subsets"]} if results else set(),
        split_note=split_note,
        tasks=sections.task_tables(results) if results else None,
        cards=sections.cards(results) if results else [],
        verdicts=[v for v in words.verdicts(results) if v["strongest"]] if results else [],
        blends=[*words.blends(results), *words.left_out(results)] if results else [],
        warnings=said + (words.warnings(results) if results else []),
        subsets=sections.subset_plots(results) if results else [],
        ranking=sections.ranking(results) if results else None,
        strata=sections.strata(results) if results else None,
        balance=sections.balance(results) if results else None,
        patterns=sections.patterns(results),
        splits=sections.splits_table(cohort["splits"]) if cohort else None,
        calibration=sections.calibration(results) if results else None,
        routing=sections.routing(results) if results else [],
        first=[section for section in made if section.name in FIRST],
        sections=[section for section in made if section.name not in FIRST],
    )


def _results(workdir: Path) -> tuple[dict[str, Any] | None, str]:
    """The split shown, and what is to be said about it."""
    paths = sorted((workdir / "results").glob("*.json"))
    found = {
        path.stem: None if damage.differs(workdir, f"results/{path.name}") else _json(path)
        for path in paths
    }
    known = {name: r for name, r in found.items() if r is not None and r.get("schema") == 1}
    if not known:
        return None, "No readable results/*.json of schema 1: the run has not been evaluated yet."
    name = next((split for split in SPLITS if split in known), min(known))
    others = sorted(set(found) - {name})
    note = f"Also in the workdir, not shown: {', '.join(others)}." if others else ""
    if known[name].get("missing"):
        note = f"Made to lack more than it does: {words.lacking(known[name]['missing'])}. {note}"
    return known[name], note


def _stress(
    workdir: Path, results: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, str | None]:
    """The stress test if it is of the parameters there are and of the results', and what to say.

    As far as they say whose they are; `damage.lines` says the former.
    """
    found = _undamaged(workdir, "stress.json")
    if damage.of_others(workdir, "stress.json"):
        return None, None
    told = [document.get("parameters") for document in (found, results) if document]
    if len(told) == 2 and None not in told and told[0] != told[1]:
        return None, "stress.json is of other parameters than the results, and is not shown"
    return found, None


def _undamaged(workdir: Path, name: str) -> dict[str, Any] | None:
    return None if damage.differs(workdir, name) else _json(workdir / name)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = seal.load(path)
    except (OSError, ValueError):
        return None
    return all_printable(found) if isinstance(found, dict) else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, without what is damaged."""
    rows = []
    for line in seal.sound_lines(path)[0]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(
                all_printable({k: v for k, v in row.items() if k not in (seal.NUMBER, seal.SUM)})
            )
    return rows
