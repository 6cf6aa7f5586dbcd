"""What of a work directory is not as it was written: files that numbers are read from."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4 import seal

LOG = "metrics.jsonl"
TRAINED_BY = ("method", "optim", "seed")  # sections of a configuration
# The mode that writes a file, or those of a folder, again; that of others has their own name.
WRITERS = {"results": "eval", "predictions": "predict", "results/crossval.json": "crossval"}
WRITERS |= {"members.json": "ensemble"}
OF_PARAMETERS = ("results/test.json", "results/crossval.json", "stress.json")


def lines(workdir: Path) -> list[str]:
    """A line for each file that is not as it was written, or not there any more.

    A run of a version that sealed nothing lacks no seals, and is not told so.
    """
    results = [f"results/{path.name}" for path in (workdir / "results").glob("*.json")]
    known, sealing = seal.listed(workdir), _sealing(workdir)
    found = []
    if known is None:
        there = (workdir / seal.FILE).exists()
        if there or (results and sealing):
            found.append(
                f"{seal.FILE} {'is damaged' if there else 'is gone'}: nobody vouches for what it"
                " listed; --mode=eval and --mode=predict write that again"
            )
    else:
        for name in sorted({*results, *known}):
            problem = seal.problem(workdir, name)
            if problem and (sealing or problem != "has no seal"):
                found.append(f"{name} {problem}; {again(name)}")
    found += [
        f"{name} is of other parameters than those that are there; {again(name)}"
        for name in OF_PARAMETERS
        if of_others(workdir, name)
    ]
    note = _newest_note(workdir)
    if problem := _of_log(workdir, note, begun=bool(results)):
        found.append(f"{LOG} {problem}; the curves show what is left")
    if wrong := _of_config(workdir, note):
        found.append(f"config.json: {wrong} is not what the newest checkpoint was trained with")
    if changed(workdir / "data.json"):
        found.append("data.json has changed since it was written; its figures are not shown")
    if changed(workdir / "run.json"):
        found.append("run.json has changed since it was written; what it says may be wrong")
    return found


def changed(path: Path) -> bool:
    """Whether a document with a seal of its own is another than was written, or no document."""
    with contextlib.suppress(OSError, ValueError):
        document = seal.load(path)
        return isinstance(document, dict) and seal.KEY in document and not seal.intact(document)
    return path.is_file()


def again(name: str) -> str:
    """What writes a file of a work directory again."""
    folder = name.partition("/")[0]
    mode = WRITERS.get(name) or WRITERS.get(folder, name.partition(".")[0])
    return f"--mode={mode} writes it again"


def best(place: Path) -> str | None:
    """The best parameters of a run, by step and digest; None without any that say what they are."""
    folder = place / "checkpoints/best"
    steps = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal()]
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = seal.load(folder / str(max(steps)) / "meta/metadata")
        if seal.intact(found):
            return f"{max(steps)} {found[seal.KEY]}"
    return None


def of_others(workdir: Path, name: str) -> bool:
    """Whether a document says that it is of other best parameters than those that are there.

    Scores out of fold in a folder without folds (a refit, an ensemble of folds) are of others on
    purpose.
    """
    folds = (workdir / "fold_0").is_dir()
    if not (workdir / name).is_file() or (name == "results/crossval.json" and not folds):
        return False
    try:
        told = seal.load(workdir / name)["parameters"]
        now = [best(place) for place in _places(workdir, len(told))]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False  # damaged, or of a version that did not say it
    return all(now) and now != told


def _places(workdir: Path, count: int) -> list[Path]:
    """The folders of all that predicts, of a cross-validation's folds the first `count`."""
    if (workdir / "members.json").is_file():
        members = seal.load(workdir / "members.json")["members"]
        return [workdir / member["folder"] for member in members]
    if (workdir / "checkpoints").is_dir() or not (workdir / "fold_0").is_dir():
        return [workdir]
    return [workdir / f"fold_{k}" for k in range(count)]


def differs(workdir: Path, name: str) -> bool:
    """Whether a file is known to be another than was written."""
    return seal.problem(workdir, name) == "differs from its seal"


def _of_config(workdir: Path, note: Mapping[str, Any]) -> str | None:
    """The section in which a run's configuration differs from that of its newest state."""
    then = note.get("config")
    if not isinstance(then, dict):
        return None
    with contextlib.suppress(OSError, ValueError):
        now = seal.load(workdir / "config.json")
        if isinstance(now, dict):
            return next((k for k in TRAINED_BY if not _alike(then.get(k), now.get(k))), None)
    return None


def _alike(then: Any, now: Any) -> bool:
    """Whether values agree, of sections the fields that both have: versions add some."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(_alike(then[name], now[name]) for name in then.keys() & now.keys())
    return then == now


def _of_log(workdir: Path, note: Mapping[str, Any], *, begun: bool) -> str | None:
    """What is wrong with the log of a run; nothing before its first step."""
    steps = _steps(workdir)
    least = note.get("log") if isinstance(note.get("log"), int) else 0
    problem = seal.sound_lines(workdir / LOG, least or 0)[1]
    several = (workdir / "fold_0").is_dir() or (workdir / "members.json").is_file()
    trained = (workdir / "run.json").is_file() and not several
    if problem is None and (begun or steps) and trained and not (workdir / LOG).is_file():
        return "is gone"
    return problem


def _steps(workdir: Path) -> list[Path]:
    """Saved states, the newest first."""
    steps = [p for p in (workdir / "checkpoints/last").glob("[0-9]*") if p.name.isdecimal()]
    return sorted(steps, key=lambda p: -int(p.name))


def _newest_note(workdir: Path) -> dict[str, Any]:
    """The note of the newest state that has a sound one, {} without any."""
    return next(filter(None, map(_note, _steps(workdir))), {})


def _note(step: Path) -> dict[str, Any]:
    """What a saved step says of itself, {} if that is damaged."""
    with contextlib.suppress(OSError, ValueError, LookupError, RecursionError):
        found = seal.load(step / "meta/metadata")
        if seal.intact(found) and isinstance(found["note"], dict):
            return found["note"]
    return {}


def _sealing(workdir: Path) -> bool:
    """Whether the run was begun by a version that seals, which keeps every start of a run."""
    try:
        starts = seal.load(workdir / "run.json")["starts"]
        return "code" in starts[0]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
