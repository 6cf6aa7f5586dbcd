"""Checkpoints: arrays, a JSON note and digests of both; saved in the background, restored verified.

    checkpoints/last/<step>/{state,meta}    train states
    checkpoints/best/<step>/{state,meta}    evaluation parameters of the best step
    .../<step>.corrupt-<k>                  a step that failed verification, kept for inspection

A step's folder appears under its number only when it is complete. `meta` holds the note, dtype,
shape and digest of every array, and a digest of all that; arrays are written by Orbax, which is
touched nowhere else and would return flipped bits without a word.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from m4 import seal
from m4.errors import CheckpointError, Preempted, SaveError, full, out_of_memory
from m4.remote import outages
from m4.train import digest, quiet, retention, unlocked, verify

Note = dict[str, Any]
# Orbax counts its operations once for the whole process, and two at a time mix up their folders.
_ORBAX = threading.Lock()
Accept = Callable[[Note], None]
Wait = Callable[[], None]


class Checkpoints:
    """One folder of numbered checkpoints.

    Kept are the newest `keep`, every step that is a multiple of `every` (0: none), and always
    the newest one that was verified: restored, or, where one process has it all, read back after
    it was written. Where the disk is too full for another state, older ones go before their time:
    what `every` protects, the newest and the newest verified one stay. If that is not enough,
    `room` is called, which says whether it has made some elsewhere. Several processes must make
    the same calls. What a killed run left half done is cleared away, unless `sweep` is False.
    """

    def __init__(
        self,
        folder: retention.Folder,
        *,
        keep: int,
        every: int = 0,
        sweep: bool = True,
        room: Callable[[], bool] = lambda: False,
    ):
        quiet.orbax()
        self.folder = folder.absolute() if isinstance(folder, Path) else folder
        self._keep, self._every, self._room = keep, every, room
        self._verified: set[int] = set()
        self._saver = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
            ),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder.name
            ),
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"checkpoints-{folder.name}")
        self._pending: Future | None = None
        self._told = threading.Lock()  # of `_pending`
        self._arrays = verify.Arrays()
        if sweep:
            if isinstance(self.folder, Path):
                unlocked.prepare(self.folder)
            if jax.process_index() == 0:
                retention.sweep(self.folder)
        _sync(f"opened {folder.name}")

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first; whether they are sound is not known yet."""
        return retention.complete(self.folder)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def used(self) -> bool:
        """Whether there is, or was before it was damaged, any checkpoint."""
        return bool(self.steps() or retention.damaged(self.folder))

    def save(self, step: int, state: Any, note: Note, *, after: Wait = lambda: None) -> None:
        """Starts saving; a checkpoint of the same step is replaced unless it is the same.

        `after` must return before any of it is written. A state on one device keeps the caller
        for a copy in host memory and no longer; a split one until Orbax has made its own.

        One that finds the disk full deletes older steps and tries once more. Raises SaveError for
        the last save, of a split state also for this one: not if the last one, of a split state,
        found the disk full and older steps could be deleted for this one. (Its arrays are gone by
        then: the step has donated them.)
        """
        try:
            self.wait()
        except SaveError as error:
            if _on_one_device(state) or not self._makes_room(error):
                raise
            _warn(f"{error.args[0]}; deleted older steps and goes on")
        if _on_one_device(state):
            held = jax.tree.map(np.array, state)  # the caller may donate its own
            self._pending = self._thread.submit(self._whole, step, held, note, after)
            return
        after()
        with contextlib.ExitStack() as turn:
            turn.enter_context(_ORBAX)
            if self._begin(step, state, note):
                self._pending = self._thread.submit(self._rest, step, turn.pop_all())

    def wait(self) -> None:
        """Returns when everything is on disk, on any thread. Raises SaveError if it isn't, once."""
        if (pending := self._pending) is None:
            return
        try:
            pending.result()
        finally:  # not before: another thread that waits, too, must not find nothing to wait for
            with self._told:
                self._pending = None if self._pending is pending else self._pending

    def make_room(self, state: Any) -> tuple[int, int]:
        """(bytes free on the disk, bytes of `state`); if short, older steps are deleted first."""
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        if not isinstance(self.folder, Path):
            return size, size  # of a bucket nobody knows how full it is
        folder = next(p for p in (self.folder, *self.folder.parents) if p.is_dir())
        first = jax.process_index() == 0
        if shutil.disk_usage(folder).free < size and first and self.spare():
            _warn(f"{self.folder}: the disk is nearly full; deleted older steps")
        return shutil.disk_usage(folder).free, size

    def restore(
        self, like: Any, step: int | None = None, *, accept: Accept = lambda note: None
    ) -> tuple[Any, Note]:
        """The newest sound state in the shapes and shardings of `like`, and its note.

        A step that cannot be read or whose digests differ is renamed to `<step>.corrupt-<k>`
        and the one before it is tried; with `step`, later ones are left alone. `accept` may
        raise for a note that must not be used. Raises CheckpointError if no sound step is left,
        or if it doesn't fit `like`: nothing is cast or reshaped.
        """
        self.wait()
        tried = []
        for number in reversed([s for s in self.steps() if step is None or s <= step]):
            found, problem = self._attempt(number, like, accept)
            if problem is None:
                self._verified.add(number)
                return found
            tried.append(f"{self._path(number)}: {problem}")
            self._quarantine(number)
            if jax.process_index() == 0:
                _warn(f"{tried[-1]}; trying an older one")
        if tried:
            raise CheckpointError("no sound checkpoint is left; tried:", *tried)
        if damaged := retention.damaged(self.folder):
            raise CheckpointError(
                f"{self.folder}: holds damaged checkpoints only ({', '.join(damaged)}); to start"
                " from scratch choose another --workdir"
            )
        raise CheckpointError(f"{self.folder}: holds no checkpoint")

    def scrub(self) -> dict[int, str | None]:
        """Reads every step, changes nothing; step -> what is wrong with it, or None."""
        self.wait()
        return {step: self._arrays.problem(self._path(step)) for step in self.steps()}

    def newest(self) -> dict[str, Any] | None:
        """{step, digest} of the newest complete step with a sound note; both are in its note."""
        found = self._newest_meta()
        return None if found is None else {"step": found[0], "digest": found[1][seal.KEY]}

    def note(self) -> Note | None:
        """The note of the newest step that has a sound one; arrays are not looked at."""
        found = self._newest_meta()
        return None if found is None else found[1]["note"]

    def _newest_meta(self) -> tuple[int, Note] | None:
        """(step, sealed note) of the newest step that has a sound one."""
        for step in reversed(self.steps()):
            path = self._path(step)
            try:
                return step, verify.meta(path)
            except Exception as error:  # noqa: BLE001 (a damaged file can raise anything)
                verify.require_answer(path, error)
        return None

    def close(self) -> None:
        """Waits for saves under way and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(Exception):  # says again what a save has failed of
                self._saver.close()

    @property
    def _reads_back(self) -> bool:
        """Whether what was written is read again: not what others have written, or a bucket has."""
        return jax.process_count() == 1 and isinstance(self.folder, Path)

    def _path(self, step: int) -> retention.Folder:
        return self.folder / str(step)

    def _whole(self, step: int, state: Any, note: Note, after: Wait) -> None:
        after()
        with _ORBAX:
            try:
                self._at_once(step, state, note)
            except SaveError as error:
                if not self._makes_room(error):
                    raise
                _warn(f"{error.args[0]}; deleted older steps and tries again")
                self._at_once(step, state, note)

    def _at_once(self, step: int, state: Any, note: Note) -> None:
        if self._begin(step, state, note):
            self._finish(step)

    def _rest(self, step: int, turn: contextlib.ExitStack) -> None:
        with turn:
            self._finish(step)

    def _begin(self, step: int, state: Any, note: Note) -> bool:
        """Hands everything to Orbax; whether there is anything to finish."""
        try:
            meta = seal.sealed({"note": note, "leaves": digest.of_tree(state)})
            if self._has(step, meta):
                return False
            self.make_room(state)
            self._set_aside(step)
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            self._saver.save(self._path(step), args=args)
        except Exception as error:
            raise self._save_error(step, error) from error
        return True

    def _finish(self, step: int) -> None:
        """In the background: waits for the commit, reads it back, deletes what is superseded."""
        try:
            self._saver.wait_until_finished()
            if self._reads_back:
                problem = self._arrays.problem(self._path(step))
                if problem:
                    raise OSError(f"read back after saving: {problem}")
                self._verified.add(step)
            if jax.process_index() == 0:
                self._retire(self._keep)
        except Exception as error:
            raise self._save_error(step, error) from error

    def _makes_room(self, error: SaveError) -> bool:
        """Whether a full disk was all that was wrong, and has room again: of one process."""
        return full(error) and jax.process_count() == 1 and (self.spare() or self._room())

    def spare(self) -> bool:
        """Deletes every step that can go and what a failed save left; whether a step went."""
        retention.sweep(self.folder)
        before = len(self.steps())
        self._retire(1)
        return len(self.steps()) < before

    def _retire(self, keep: int) -> None:
        steps = self.steps()
        kept = set(steps[-keep:]) | {max(self._verified & {*steps}, default=-1)}
        if self._every:
            kept |= {s for s in steps if s % self._every == 0}
        retention.retire(self.folder, kept)

    def _has(self, step: int, meta: Note) -> bool:
        """Whether exactly this is there already, as when a resumed run comes by again."""
        try:
            same = step in self.steps() and verify.meta(self._path(step)) == meta
        except Exception:  # noqa: BLE001 (damaged: to be replaced)
            same = False
        if same and step not in self._verified and self._reads_back:
            same = self._arrays.problem(self._path(step)) is None
        return _all(same)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0 and retention.set_aside(self.folder, step):
            self._verified.discard(step)
        _sync(f"set aside {self.folder.name} {step}")

    def _quarantine(self, step: int) -> None:
        if jax.process_index() == 0:
            retention.quarantine(self.folder, step)
        _sync(f"quarantined {self.folder.name} {step}")

    def _attempt(self, step: int, like: Any, accept: Accept) -> tuple[Any, str | None]:
        """((state, note), None), or (None, what is wrong); all processes agree."""
        path = self._path(step)
        meta, problem = _tried(lambda: verify.meta(path), path)
        if problem is not None:
            return None, problem
        misfits = verify.misfits(meta["leaves"], digest.named(like))
        if misfits:  # Orbax would cast another dtype without a word
            raise CheckpointError(f"{path}: does not fit:", *misfits)
        accept(meta["note"])
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        state, problem = _tried(lambda: self._saver.restore(path, args=args)["state"], path)
        if problem is not None:
            return None, problem
        wrong = verify.differing(meta["leaves"], digest.of_tree(state))
        return ((state, meta["note"]), None) if wrong is None else (None, wrong)

    def _save_error(self, step: int, error: Exception) -> SaveError | Preempted:
        if isinstance(error, SaveError | Preempted):
            return error
        if not isinstance(self.folder, Path) and outages.passes(error):
            return Preempted(f"{self.folder}: step {step} not saved ({outages.words(error)})")
        short = out_of_memory(error) and not full(error)
        why = f"out of memory: {verify.words(error)}" if short else verify.words(error)
        return SaveError(f"{self.folder}: checkpoint of step {step} not saved ({why})")


def abstract(state: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of `state` (arrays or shapes), for `restore` and compiling."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


def _on_one_device(state: Any) -> bool:
    arrays = (x for x in jax.tree.leaves(state) if isinstance(x, jax.Array))
    return all(len(x.devices()) == 1 for x in arrays)


def _tried(read: Callable[[], Any], path: retention.Folder) -> tuple[Any, str | None]:
    """(what `read` returns, None), or (None, why it failed); all processes agree.

    One process alone reads again what it could not: a disk that stumbles once damages nothing.
    """
    found, problem = None, None
    try:
        found = _twice(read) if jax.process_count() == 1 else read()
    except (PermissionError, verify.NewerError) as error:  # says nothing about what is stored
        raise CheckpointError(f"{path}: {verify.words(error)}") from error
    except Exception as error:  # (a damaged file can raise anything)
        verify.require_answer(path, error)
        if verify.short(error):
            raise CheckpointError(
                f"{path}: not read for want of memory or open files, and not damaged as far as is"
                f" known ({verify.words(error)})"
            ) from error
        problem = f"cannot be read ({verify.words(error)})"
    if _all(problem is None):
        return found, None
    return None, problem or "cannot be read by another process"


def _twice(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (PermissionError, verify.NewerError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 (whatever it was: the second time decides)
        return read()


def _warn(text: str) -> None:
    print(f"m4: warning: {text}", flush=True)


def _sync(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _all(value: bool) -> bool:
    """Whether it is true on every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))
