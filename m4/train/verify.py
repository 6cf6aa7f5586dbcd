"""Whether a stored step is what was saved: the seal of its note, the digests of its arrays."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from m4 import seal
from m4.errors import HANDLES, CheckpointError, Preempted, out_of_memory
from m4.remote import outages
from m4.train import digest, retention


class NewerError(Exception):
    """A sound note with parts that this version does not know."""


class Arrays:
    """Reads the arrays of steps of one folder; what they look like is read once."""

    def __init__(self):
        self._layout: tuple[frozenset[str], Any] = (frozenset(), None)  # of the last step read

    def problem(self, path: retention.Folder) -> str | None:
        """What is wrong with a step, read into host memory."""
        return self.read(path)[2]

    def read(self, path: retention.Folder) -> tuple[Any, Any, str | None]:
        """(arrays in host memory, note, None) of a step, or (None, None, what is wrong)."""
        try:
            found = meta(path)
            leaves = found["leaves"]
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                names, host = self._layout
                if names != leaves.keys():  # once: reading it keeps 10 kB an array for ever
                    tree = reader.metadata(path / "state").item_metadata.tree
                    host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                    self._layout = (frozenset(leaves), host)
                args = ocp.args.PyTreeRestore(restore_args=host)
                state = reader.restore(path / "state", args=args)
            wrong = differing(leaves, digest.of_tree(state))
        except NewerError as error:
            wrong = str(error)
        except Exception as error:  # (a damaged file can raise anything)
            require_answer(path, error)
            wrong = f"cannot be read ({words(error)})"
        return (state, found["note"], None) if wrong is None else (None, None, wrong)


def meta(path: retention.Folder) -> dict[str, Any]:
    """The sealed note of a step. Raises ValueError if the seal is broken."""
    place = path / "meta" / "metadata"
    found = seal.load(place) if isinstance(place, Path) else seal.parsed(place.read_text())
    if not isinstance(found, dict) or not {"note", "leaves", seal.KEY} <= {*found}:
        raise ValueError("the note has no digests")
    if not seal.intact(found):
        raise ValueError("the note differs from its digest")
    if more := {*found} - {"note", "leaves", seal.KEY}:
        raise NewerError(f"written by a newer version of m4, which knows {min(more)!r}")
    return found


def require_answer(path: retention.Folder, error: Exception) -> None:
    """Raises what to tell if an error of a read says that a bucket did not answer, or refused."""
    if not isinstance(path, Path) and (outages.passes(error) or outages.refuses(error)):
        kind = Preempted if outages.passes(error) else CheckpointError
        raise kind(f"{path}: cannot be reached ({outages.words(error)})") from error


def newest_note(folder: Path) -> dict[str, Any]:
    """The note of the newest step of a folder that has a sound one, {} without any."""
    for step in reversed(retention.complete(folder)):
        with contextlib.suppress(Exception):
            return meta(folder / str(step))["note"]
    return {}


def disowned(folder: Path, step: int, digest: str | None) -> str | None:
    """What is wrong with a best step (and the digest of its note) by a run's newest state.

    None too where there is no state to ask, as in a member of an ensemble.
    """
    named = newest_note(folder / "checkpoints/last").get("best")
    if not named or step > named["step"]:
        return None
    if step < named["step"]:
        return f"since the best, {named['step']}, is gone or damaged"
    return None if digest == named["digest"] else "but is not the one that this run saved"


def best_step(folder: Path) -> int:
    """The best step of a run, by its folder's name.

    Raises CheckpointError without one, and for one that its newest state does not know.
    """
    best = retention.complete(folder / "checkpoints/best")
    if not best:
        raise CheckpointError(f"{folder}: holds no trained parameters")
    digest = None
    with contextlib.suppress(OSError, ValueError):
        digest = meta(folder / f"checkpoints/best/{best[-1]}")[seal.KEY]
    if why := disowned(folder, best[-1], digest):
        raise CheckpointError(
            f"{folder}: step {best[-1]} would be taken, {why}; put it back, or choose among what"
            " is left by the command that trained, with --force=best"
        )
    return best[-1]


def differing(saved: digest.Leaves, found: digest.Leaves) -> str | None:
    """How many arrays are not what was saved, or None."""
    wrong = sorted(k for k in saved.keys() | found.keys() if saved.get(k) != found.get(k))
    return f"{len(wrong)} arrays differ from their digests, first {wrong[0]}" if wrong else None


def misfits(saved: digest.Leaves, wanted: Mapping[str, Any]) -> list[str]:
    """A line for every array that is saved otherwise than it is wanted."""
    was = {name: f"{dtype}{shape}" for name, (dtype, shape, _) in saved.items()}
    now = {name: f"{x.dtype}{list(x.shape)}" for name, x in wanted.items()}
    return [
        f"{name}: saved {was.get(name, 'nothing')}, expected {now.get(name, 'nothing')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]


def short(error: BaseException) -> bool:
    """Whether an error says nothing about what is stored: memory or handles ran out."""
    return out_of_memory(error) or any(words in str(error) for words in map(os.strerror, HANDLES))


def words(error: Exception) -> str:
    """An error in one line that quotes no more than it has to."""
    if isinstance(error, OSError) and error.errno:
        return f"{type(error).__name__}: {os.strerror(error.errno)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
