"""Folders for what is written on the way, which is of patients: each says whose it is.

    <prefix><random>/   for its owner only
        owner.json      the process that made it (`m4.owners`); null when it is done with it
        kept-*/         what a later attempt can take up
        ...             folders that are of no use to anybody else

What processes left that were killed is swept at later starts. Of another host, another container or
an earlier start of the machine nobody here can tell whether the owner lives: such a folder goes
when nothing in it has changed for a day. File locks are not asked, which other hosts may not see.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m4 import atomic, owners, seal

OWNER = "owner.json"
KEPT = "kept-"
TRIES = 3  # of a folder that others sweep
OLD = 86400.0  # seconds without a change
PARTIAL = ".partial-"  # in folders of built data
BESIDE = ".scratch-"  # in folders that hold other things too
SYSTEM = "m4-scratch-"  # among everybody's temporary files


def made(folder: Path, prefix: str = PARTIAL) -> Path:
    """A new folder of this process in `folder`. Raises OSError."""
    for _ in range(TRIES):  # it may be swept before it is signed
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))  # mode 0700
        try:
            _sign(place, owners.own())
            return place
        except FileNotFoundError:
            continue
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """A new folder of this process, gone afterwards; if the block fails, what is kept stays."""
    place = made(folder)
    try:
        yield place
    except BaseException:
        with contextlib.suppress(OSError):
            _clear(place, kept=True)
        raise
    remove(place)


def remove(place: Path) -> None:
    """Removes a folder of this process; what cannot be removed now is nobody's from now on."""
    with contextlib.suppress(OSError):
        _clear(place, kept=False)


def somewhere(folder: Path | None = None) -> Path:
    """A new folder of this process, for whatever has no place of its own; the caller removes it.

    It lies in `folder`, if that can be written by its owner alone and who asks is that, or else
    among the system's temporary files. What was left in either goes. Raises OSError.
    """
    system = Path(tempfile.gettempdir())
    sweep(system, SYSTEM, unsigned=False)
    if folder is not None:
        sweep(folder, BESIDE, unsigned=False)
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
                return made(folder, BESIDE)
    return made(system, SYSTEM)


def sweep(folder: Path, prefix: str = PARTIAL, *, kept: bool = True, unsigned: bool = True) -> None:
    """Removes what processes left in `folder` that are dead, but for what is `kept` if that is so.

    `unsigned` folders, of which nobody wrote whose they are, go when they are old.
    """
    with contextlib.suppress(OSError):
        own = {os.geteuid(), os.stat(folder).st_uid}  # some file systems have one user for all
        for place in folder.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                status = os.lstat(place)
                signed = (place / OWNER).exists()
                if not stat.S_ISDIR(status.st_mode) or status.st_uid not in own:
                    continue
                if (signed or unsigned) and _free(place):
                    _clear(place, kept=kept)
                elif unsigned and not signed:
                    _drop(place)


def adopt(place: Path) -> None:
    """Has `place` hold what earlier attempts beside it keep: the newest of each name.

    What is still somebody's is shared by links: what is complete in it never changes, and what is
    not is begun anew.
    """
    found = place.parent.glob(f"{PARTIAL}*/{KEPT}*")
    for kept in sorted((k for k in found if k.parent != place), key=_changed, reverse=True):
        with contextlib.suppress(OSError, shutil.Error):  # another took it, or it is gone
            if (place / kept.name).exists():
                continue
            if _free(kept.parent):
                kept.rename(place / kept.name)
            else:
                shutil.copytree(kept, place / kept.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # no links here
        shutil.copy2(source, target)


def _clear(place: Path, *, kept: bool) -> None:
    """Removes a folder; if something in it is kept, all but that, and it is nobody's.

    Its note goes last: should we be killed, the rest is swept.
    """

    def rest() -> list[Path]:
        return [item for item in place.iterdir() if item.name != OWNER]

    for _ in range(2):  # some may be made meanwhile
        for item in rest():
            if not (kept and item.name.startswith(KEPT)):
                _remove(item)
    if rest():  # kept, or open on a network's disk
        _sign(place, None)
    else:
        (place / OWNER).unlink(missing_ok=True)
        place.rmdir()


def _remove(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            item.unlink()


def _drop(place: Path) -> None:
    """Removes a folder of a process that was killed before it signed it; `made` tries again."""
    inside = [*place.iterdir()]
    if all(item.name.startswith(f".{OWNER}.") for item in inside):
        for item in inside:
            item.unlink()
        place.rmdir()  # not if it was signed meanwhile


def _sign(place: Path, owner: Mapping[str, Any] | None) -> None:
    atomic.write(place / OWNER, json.dumps(owner))


def _free(place: Path) -> bool:
    """Whether a folder is nobody's, its owner is dead, or it is old and its owner not known."""
    try:
        owner = seal.load(place / OWNER)
    except (OSError, ValueError):
        owner = {}
    if owner is None:
        return True
    lives = owners.lives(owner) if isinstance(owner, dict) else None
    return time.time() - _changed(place) > OLD if lives is None else not lives


def _changed(place: Path) -> float:
    """When a folder, or something in it, was changed last."""
    inside = (os.path.join(at, n) for at, dirs, files in os.walk(place) for n in (*dirs, *files))
    with contextlib.suppress(OSError):
        return max(os.lstat(path).st_mtime for path in (place, *inside))
    return time.time()  # something goes while we look: somebody is at it
