"""Folders named by the number of a step: which are complete, and which go.

    <step>                complete
    <step>.replaced       gives way to a successor that is being written
    <step>.deleted        on its way out
    <step>.corrupt-<k>    damaged, kept for inspection

Everything is a rename first: what is half written or half deleted is never found under a number.
Nothing here knows what the folders hold.
"""

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path


def complete(folder: Path) -> list[int]:
    """Steps with a folder of their own, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def retire(folder: Path, kept: Collection[int]) -> None:
    """Deletes the steps that are not `kept`, and what complete steps have replaced."""
    steps = complete(folder)
    for gone in [str(s) for s in steps if s not in kept] + [f"{s}.replaced" for s in steps]:
        if (folder / gone).is_dir():
            shutil.rmtree((folder / gone).rename(folder / f"{gone}.deleted"))


def sweep(folder: Path) -> None:
    """Clears away what a killed run left half done."""
    for leftover in folder.glob("*.replaced"):
        if not leftover.with_suffix("").exists():  # killed before its successor was complete
            leftover.rename(leftover.with_suffix(""))
    for pattern in ("*.orbax-checkpoint-tmp*", "*.deleted", "*.replaced"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def set_aside(folder: Path, step: int) -> bool:
    """Makes room for a new folder of the same step; whether there was one."""
    found = (folder / str(step)).is_dir()
    if found:
        (folder / str(step)).rename(folder / f"{step}.replaced")
    return found


def quarantine(folder: Path, step: int) -> None:
    """Renames a damaged step; on a disk that refuses it stays and is skipped again."""
    k = len([*folder.glob(f"{step}.corrupt-*")])
    with contextlib.suppress(OSError):
        (folder / str(step)).rename(folder / f"{step}.corrupt-{k}")
