"""What of a work directory is not as it was written: files that numbers are read from."""

import contextlib
import json
from pathlib import Path
from typing import Any

from m4 import seal

LOG = "metrics.jsonl"
WRITERS = {"results": "eval", "predictions": "predict"}  # a folder's; of other files their own mode


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
                again = WRITERS.get(name.partition("/")[0], name.partition(".")[0])
                found.append(f"{name} {problem}; --mode={again} writes it again")
    if problem := _of_log(workdir, begun=bool(results)):
        found.append(f"{LOG} {problem}; the curves show what is left")
    return found


def differs(workdir: Path, name: str) -> bool:
    """Whether a file is known to be another than was written."""
    return seal.problem(workdir, name) == "differs from its seal"


def _of_log(workdir: Path, *, begun: bool) -> str | None:
    """What is wrong with the log of a run; nothing before its first step."""
    steps = [p for p in (workdir / "checkpoints/last").glob("[0-9]*") if p.name.isdecimal()]
    note: dict[str, Any] = {}
    for path in sorted(steps, key=lambda p: -int(p.name)):
        if note := _note(path):
            break
    least = note.get("log") if isinstance(note.get("log"), int) else 0
    problem = seal.sound_lines(workdir / LOG, least or 0)[1]
    several = (workdir / "fold_0").is_dir() or (workdir / "members.json").is_file()
    trained = (workdir / "run.json").is_file() and not several
    if problem is None and (begun or steps) and trained and not (workdir / LOG).is_file():
        return "is gone"
    return problem


def _note(step: Path) -> dict[str, Any]:
    """What a saved step says of itself, {} if that is damaged."""
    with contextlib.suppress(OSError, ValueError, LookupError, RecursionError):
        found = json.loads((step / "meta/metadata").read_text(encoding="utf-8"))
        if seal.intact(found) and isinstance(found["note"], dict):
            return found["note"]
    return {}


def _sealing(workdir: Path) -> bool:
    """Whether the run was begun by a version that seals, which keeps every start of a run."""
    try:
        starts = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["starts"]
        return "code" in starts[0]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
