"""Brings a work directory in a bucket here, and what has changed here to the bucket.

    pull    the folder becomes what the bucket has, but for the arrays of states
    push    the bucket becomes what the folder has, but for states, locks and what is on the way

Objects that are as they were when they came or went are neither read nor written again: the
folder's `.synced.json` has their generations.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m4 import atomic, flock, local, seal
from m4.errors import ConfigError, Preempted, SaveError
from m4.remote import outages, places

SYNCED, TURN = ".synced.json", ".turn"
STATES, NOTE = "checkpoints", ("meta", "metadata")
DONE, CORRUPT = "commit_success.txt", "corrupt.txt"  # in a step's folder: Orbax's, ours
TRIES = 3  # of reading what changes meanwhile
# Of this machine alone, as are names with a dot: locks, caches, what a launcher has to say.
OWN = ("lock", "cache", "profile", "events.jsonl")
MOST = 1 << 32  # bytes of an object


def of(folder: Path | None) -> "Mirror | None":
    """The mirror that a folder is; None for a folder that stands for itself."""
    url = places.url_of(folder)
    return None if folder is None or url is None else Mirror(folder, url)


def begin(folder: Path | None) -> None:
    """`Mirror.begin`, if a folder is a mirror."""
    if there := of(folder):
        there.begin()


def pull(folder: Path, only: str = "") -> None:
    """`Mirror.pull`, if a folder is a mirror."""
    if there := of(folder):
        there.pull(only)


def push(folder: Path) -> None:
    """`Mirror.push`, if a folder is a mirror."""
    if there := of(folder):
        there.push()


class Mirror:
    """The folder that stands for a place in a bucket."""

    def __init__(self, folder: Path, url: str):
        self.url, self._folder = url, folder
        self._root = url.removeprefix(places.SCHEME)
        self._store = file_system(url)

    def begin(self) -> None:
        """`pull`, unless a command is at work here, which knows more than the bucket."""
        with self._turn():
            if not self._busy():
                self._pull("")

    def pull(self, only: str = "") -> None:
        """Makes the folder, or what is below `only`, as it is in the bucket.

        Raises ConfigError if the bucket cannot be read, Preempted if it could be later.
        """
        with self._turn():
            self._pull(only)

    def push(self) -> None:
        """Brings to the bucket what has changed here. Raises SaveError, or Preempted."""
        with self._turn():
            try:
                self._push()
            except Exception as error:
                kind = Preempted if outages.passes(error) else SaveError
                text = f"{self.url}: not brought to the bucket ({outages.words(error)})"
                raise kind(text) from error

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One process of this host at a time."""
        file = os.open(self._folder / TURN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock.take(file, wait=True)
            yield
        finally:
            os.close(file)

    def _busy(self) -> bool:
        try:
            file = os.open(self._folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return flock.take(file) is not True
        finally:
            os.close(file)

    def _pull(self, only: str) -> None:
        for _ in range(TRIES):
            try:
                return self._as_there(only)
            except _Changed:  # a run writes there
                continue
            except ConfigError:
                raise
            except Exception as error:
                kind = Preempted if outages.passes(error) else ConfigError
                raise kind(f"--workdir={self.url}: {outages.words(error)}") from error
        raise Preempted(f"--workdir={self.url}: changes while it is read; try again")

    def _as_there(self, only: str) -> None:
        there, known = self._there(), self._known()
        for name, found in there.items():
            if not name.startswith(only):
                continue
            if _stamp(self._folder / name, found["generation"]) != known.get(name):
                self._fetch(name, found)
                known[name] = _stamp(self._folder / name, found["generation"])
        for name in [*self._here(states=True)]:
            if name.startswith(only) and name not in there:
                self._forget(name)
                known.pop(name, None)
        self._remember(known)

    def _push(self) -> None:
        known, here = self._known(), {*self._here()}
        for name in sorted(here):
            path = self._folder / name
            before = _stamp(path, (known.get(name) or [None])[0])
            if not before or before == known.get(name):
                continue
            try:
                content = path.read_bytes()  # at once: a log may grow meanwhile
            except FileNotFoundError:  # replaced or removed just now: the next time
                continue
            self._store.pipe_file(f"{self._root}/{name}", content)
            found = self._store.info(f"{self._root}/{name}")
            known[name] = [found["generation"], *before[1:]]
        for name in [n for n in known if n not in here and not n.startswith(f"{STATES}/")]:
            if not (self._folder / name).exists():
                with contextlib.suppress(FileNotFoundError):
                    self._store.rm_file(f"{self._root}/{name}")
                known.pop(name)
        self._remember(known)

    def _there(self) -> dict[str, Any]:
        """What the bucket has of what is kept here: name -> what is known of it."""
        found = self._store.find(self._root, detail=True)
        names = {path.removeprefix(f"{self._root}/"): about for path, about in found.items()}
        kept = {}
        for name, about in names.items():
            place = local.below(self._folder, name)
            if place is None or about.get("type") != "file" or _passing(name):
                continue
            if name.startswith(f"{STATES}/"):
                *step, folder, file = name.split("/")
                here = "/".join(step)
                if (folder, file) != NOTE or f"{here}/{DONE}" not in names:
                    continue
                if f"{here}/{CORRUPT}" in names:
                    continue
            if about["size"] > MOST:
                raise ConfigError(f"--workdir={self.url}: {name} is larger than a run writes")
            kept[name] = about
        return kept

    def _here(self, *, states: bool = False) -> Iterator[str]:
        """Files of the folder that are the bucket's, too."""
        for place, folders, files in os.walk(self._folder, onerror=_fail):
            inside = os.path.relpath(place, self._folder)
            folders[:] = [f for f in folders if states or inside != "." or f != STATES]
            for file in files:
                name = os.path.normpath(os.path.join(inside, file))
                if not _passing(name) and not (self._folder / name).is_symlink():
                    yield name

    def _fetch(self, name: str, about: Any) -> None:
        target = self._folder / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with atomic.replaced(target) as partial:
                self._store.get_file(f"{self._root}/{name}", str(partial))
                if partial.stat().st_size != about["size"]:
                    raise _Changed
        except FileNotFoundError as error:
            raise _Changed from error

    def _forget(self, name: str) -> None:
        """Removes a file, of a state the whole folder."""
        step = name.split("/")[: -len(NOTE)]
        if name.startswith(f"{STATES}/") and step:
            shutil.rmtree(self._folder.joinpath(*step), ignore_errors=True)
        else:
            (self._folder / name).unlink(missing_ok=True)

    def _known(self) -> dict[str, list[Any]]:
        try:
            found = seal.load(self._folder / SYNCED)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, known: dict[str, list[Any]]) -> None:
        atomic.write(self._folder / SYNCED, json.dumps(known) + "\n")


class _Changed(Exception):
    """What was read is not what was listed."""


def _fail(error: OSError) -> None:
    raise error


def _stamp(path: Path, generation: Any) -> list[Any]:
    """By what a file is known not to have changed since it came or went."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [generation, found.st_size, found.st_mtime_ns]


def _passing(name: str) -> bool:
    """Whether a file is this machine's alone."""
    parts = name.split("/")
    return parts[0] in OWN or any(part.startswith(".") for part in parts)


def file_system(url: str) -> Any:
    """What reads and writes objects. Raises ConfigError where the package for it is missing."""
    try:
        import fsspec.config
        import gcsfs  # noqa: F401 (fsspec would say less)
    except ImportError:
        raise ConfigError(
            f"--workdir={url}: needs the package gcsfs: pip install 'm4-moe[gcs]'"
        ) from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Whatever reads the bucket in this process (`epath`): another process writes there, too.
    for protocol in ("gs", "gcs"):
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    return fsspec.filesystem("gs")
