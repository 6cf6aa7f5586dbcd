"""Checkpoints: arrays and a JSON note, saved in the background, restored bit for bit.

    checkpoints/last/<step>/{state,meta}    the newest few train states
    checkpoints/best/<step>/{state,meta}    evaluation parameters of the best step

One small module on purpose: Orbax is touched nowhere else.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from m4.errors import CheckpointError, SaveError


class Checkpoints:
    """One folder of numbered checkpoints, of which the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every step of its work
        self.folder = folder.absolute()
        if jax.process_index() == 0:  # Orbax ignores what a killed save left, but keeps it
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving; an older checkpoint of the same step is replaced.

        Raises SaveError for this save or, since saving goes on in the background, the last one.
        """
        try:
            if step in self._manager.all_steps():
                self._manager.wait_until_finished()  # it may be the save that is under way
                self._manager.delete(step)
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            saved = self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._save_error(step, error) from error
        if not saved:
            raise SaveError(f"{self.folder}: checkpoint of step {step} was not taken")

    def wait(self) -> None:
        """Returns when everything is on disk. Raises SaveError if it did not get there."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(None, error) from error

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """State of `step` (default: newest) in the shapes and shardings of `like`, and its note.

        Raises CheckpointError if there is none or if it doesn't fit.
        """
        self.wait()
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"{self.folder}: holds no checkpoint")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        try:
            saved = _leaves(self._manager.item_metadata(step)["state"].tree)
            misfits = _misfits(saved, _leaves(like))
            if misfits:  # Orbax would cast another dtype without a word
                raise CheckpointError(f"{self.folder / str(step)}: does not fit:", *misfits)
            restored = self._manager.restore(step, args=args)
        except CheckpointError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.folder / str(step)}: cannot be restored ({type(error).__name__}: {reason})"
            ) from error
        return restored["state"], restored["meta"]

    def close(self) -> None:
        """Waits for saves under way and lets go of the folder."""
        self._manager.close()

    def _save_error(self, step: int | None, error: Exception) -> SaveError:
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        reason = " ".join(str(error).split())[:200]
        return SaveError(f"{self.folder}: {what} not saved ({type(error).__name__}: {reason})")


def abstract(state: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of `state` (arrays or shapes), for `restore` and compiling."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


def _leaves(tree: Any) -> dict[str, str]:
    """Name of every array -> its dtype and shape in words."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{x.dtype}{list(x.shape)}"
        for path, x in leaves
    }


def _misfits(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return [
        f"{name}: saved {saved.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
