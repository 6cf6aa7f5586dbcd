"""The section on seeds: the same configuration trained with others, in folders beside this one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m4 import seal
from m4.eval import over_seeds
from m4.eval.report import words
from m4.eval.report.parts import Cell, How, Note, Row, Run, Section, Table, estimate, number

MAX_SEEDS = 20
HOW = (
    "The same configuration was trained with several seeds and tested on the same patients. A "
    "difference that is smaller than the spread between seeds is none; the last line is the mean "
    "of the seeds with its 95 % interval over seeds and patients."
)
HOW_APART = (
    "The same configuration was trained with several seeds, and each seed drew the split, too: "
    "every run was tested on patients of its own, unless the data set itself says who is tested. "
    "Rows differ by patients as well as by seeds, so their mean has no interval. With data.seed "
    "all runs have one split."
)


def beside(
    workdir: Path, config: Mapping[str, Any] | None, split: str
) -> tuple[dict[int, dict], bool]:
    """Seed -> results of the folders beside a work directory that differ in the seed alone.

    And whether they were tested on patients of their own: only if none has those of this one.
    """
    found: dict[int, dict] = {}
    same: dict[int, dict] = {}
    if not config or "seed" not in config:
        return found, False
    data = _tested(workdir)
    own = {key: value for key, value in config.items() if key != "seed"}
    for path in sorted(workdir.resolve().parent.glob("*/config.json")):
        other = _json(path)
        if other is None or {key: v for key, v in other.items() if key != "seed"} != own:
            continue
        name = f"results/{split}.json"
        if not isinstance(other.get("seed"), int) or not _sound(path.parent, name):
            continue
        results = _json(path.parent / name)
        if results and results.get("schema") == 1 and _readable(results):
            found.setdefault(other["seed"], results)
            if _tested(path.parent) == data:
                same.setdefault(other["seed"], results)
    apart = len(found) > 1 and len(same) < 2
    return dict(sorted((found if apart else same).items())[:MAX_SEEDS]), apart


def _tested(folder: Path) -> object:
    """What a run's data say of who is tested; None where nothing tells.

    The digest of the test rows' keys, since a seed may draw the validation split alone; of data
    without keys the fingerprint, which has the seed.
    """
    data = _json(folder / "data.json") or {}
    files = data.get("files")
    keys = files.get("index/test.parquet") if isinstance(files, dict) else None
    return (data.get("name"), keys) if keys else data.get("fingerprint")


def section(run: Run) -> Section | None:
    """Each seed's score of every task; None with fewer than two."""
    if len(run.seeds) < 2 or run.results is None:
        return None
    cards = run.results["tasks"]
    names = [f"{task}, {words.metric_name(card['primary'])}" for task, card in cards.items()]
    rows = [
        Row([f"seed {seed}", *(_score(results, task, card) for task, card in cards.items())])
        for seed, results in run.seeds.items()
    ]
    rows.append(
        Row(["mean of seeds", *(_mean(run, task, c) for task, c in cards.items())], "model")
    )
    note = Note(
        f"{len(run.seeds)} seeds; the figures elsewhere on this page are of this run alone."
    )
    how = How(HOW_APART if run.apart else HOW)
    return Section("seeds", "Seeds", (how, Table("seeds", ["", *names], rows), note))


def _score(results, task: str, card) -> Cell:
    e = (
        words.scores(results, task).get(card["primary"])
        if task in results.get("tasks", {})
        else None
    )
    return estimate(e)


def _mean(run: Run, task: str, card) -> Cell:
    every = [
        words.scores(results, task).get(card["primary"]) or {}
        for results in run.seeds.values()
        if task in results.get("tasks", {})
    ]
    known = [e for e in every if e.get("value") is not None]
    if len(known) < 2:
        return number(None)
    span = None if run.apart else over_seeds.interval(known, card["primary"])
    low, high = span or (None, None)
    return estimate(
        {"value": float(np.mean([e["value"] for e in known])), "low": low, "high": high}
    )


def _sound(folder: Path, name: str) -> bool:
    """Whether a neighbour's results are as it wrote them; they may be somebody else's."""
    try:
        return seal.problem(folder, name) is None
    except OSError:
        return False


def _readable(results: Mapping[str, Any]) -> bool:
    """Whether every figure that is taken from a neighbour's results is where it should be."""
    try:
        for task, card in results["tasks"].items():
            estimate(words.scores(results, task).get(card["primary"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
    return True


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = seal.load(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
