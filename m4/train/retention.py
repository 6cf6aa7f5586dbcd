"""Folders named by the number of a step: which are complete, and which go.

    <step>                complete
    <step>.replaced       gives way to a successor that is being written
    <step>.deleted        on its way out
    <step>.corrupt-<k>    damaged, kept for inspection

Everything is a rename first: what is half written or half deleted is never found under a number.
Nothing here knows what the folders hold.

In a bucket there are no renames: there a folder is complete when it has Orbax's DONE, which goes
first when the rest goes, and damaged when it has a CORRUPT.
"""

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from etils import epath

from m4.remote.mirror import CORRUPT, DONE

Folder = Path | epath.Path


def complete(folder: Folder) -> list[int]:
    """Steps with a folder of their own, ascending."""
    if not isinstance(folder, Path):
        return [
            s for s in _numbers(folder) if _has(folder, s, DONE) and not _has(folder, s, CORRUPT)
        ]
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def damaged(folder: Folder) -> list[str]:
    """Names of what failed verification."""
    if not isinstance(folder, Path):
        return [str(s) for s in _numbers(folder) if _has(folder, s, CORRUPT)]
    return sorted(path.name for path in folder.glob("*.corrupt-*"))


def retire(folder: Folder, kept: Collection[int]) -> None:
    """Deletes the steps that are not `kept`, and what complete steps have replaced."""
    steps = complete(folder)
    if not isinstance(folder, Path):
        for step in {*steps} - {*kept}:
            _remove(folder, step)
        return
    for gone in [str(s) for s in steps if s not in kept] + [f"{s}.replaced" for s in steps]:
        if (folder / gone).is_dir():
            shutil.rmtree((folder / gone).rename(folder / f"{gone}.deleted"))


def sweep(folder: Folder) -> None:
    """Clears away what a killed run left half done."""
    if not isinstance(folder, Path):
        for step in _numbers(folder):
            if not _has(folder, step, DONE) and not _has(folder, step, CORRUPT):
                _remove(folder, step)
        return
    for leftover in folder.glob("*.replaced"):
        if not leftover.with_suffix("").exists():  # killed before its successor was complete
            leftover.rename(leftover.with_suffix(""))
    for pattern in ("*.orbax-checkpoint-tmp*", "*.deleted", "*.replaced"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def set_aside(folder: Folder, step: int) -> bool:
    """Makes room for a new folder of the same step; whether there was one.

    In a bucket the old one goes at once: killed now, a run goes on from the step before.
    """
    found = (folder / str(step)).is_dir()
    if not isinstance(folder, Path):
        if found:
            _remove(folder, step)
        return found
    if found:
        (folder / str(step)).rename(folder / f"{step}.replaced")
    return found


def quarantine(folder: Folder, step: int) -> None:
    """Renames a damaged step; on a disk that refuses it stays and is skipped again."""
    if not isinstance(folder, Path):
        (folder / str(step) / CORRUPT).write_text(
            "its arrays or its note differ from their digests"
        )
        return
    k = len([*folder.glob(f"{step}.corrupt-*")])
    with contextlib.suppress(OSError):
        (folder / str(step)).rename(folder / f"{step}.corrupt-{k}")


def _numbers(folder: epath.Path) -> list[int]:
    """Steps that have anything in a bucket."""
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []


def _has(folder: epath.Path, step: int, name: str) -> bool:
    return (folder / str(step) / name).exists()


def _remove(folder: epath.Path, step: int) -> None:
    (folder / str(step) / DONE).unlink(missing_ok=True)
    (folder / str(step)).rmtree(missing_ok=True)
