"""Which folder here stands for a work directory in a bucket."""

import contextlib
import hashlib
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from m4 import atomic, local
from m4.errors import ConfigError, Preempted, SaveError, UserError
from m4.remote import outages

SCHEME = "gs://"
HOME = "M4_MIRRORS"  # variable of the environment: the folder that holds such folders
URL = ".url"  # in such a folder: which work directory it stands for
# Of a bucket's name and of a part of a path; brackets, wild cards and the like are not all kept
# by the libraries on the way.
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
PART = re.compile(r"[\w.=+,@~-]{1,200}", re.ASCII)
MODES = ("train", "eval", "predict", "report", "check", "stress")  # what can work in a bucket


def in_bucket(text: str) -> bool:
    """Whether a text names a work directory in a bucket."""
    return text.startswith(SCHEME)


def problem(url: str, mode: str) -> str | None:
    """Why a mode cannot work in such a place, in words that follow "--workdir=URL: "."""
    bucket, *parts = url.removeprefix(SCHEME).rstrip("/").split("/")
    if not BUCKET.fullmatch(bucket) or ".." in bucket:
        return f"a bucket cannot be called {bucket!r}"
    if not parts:
        return f"name a folder in the bucket, {SCHEME}{bucket}/runs/a"
    for part in parts:
        if not PART.fullmatch(part) or part in (".", ".."):
            return f"the folder {part!r} has a name that not every library keeps; choose another"
    if mode not in MODES:
        able = ", ".join(MODES)
        return f"--mode={mode} needs a local work directory; in a bucket work {able}"
    return None


def folder(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder here that stands for a work directory in a bucket, and for this process alone.

    What is read from it is believed, so it is the user's and nobody else's to write. Raises
    ConfigError where there can be none.
    """
    url = url.rstrip("/")
    own = environ.get("M4_PROCESS_ID", "0")
    key = f"{url} {socket.gethostname()}"  # a home may be shared by hosts
    name = hashlib.sha256(key.encode()).hexdigest()[:20] + (f"-{own}" if own.isdecimal() else "")
    home = _home(environ)
    try:
        place = home / name
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        for path in (home, place):
            found = path.stat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(
                    f"--workdir={url}: others may write to {path}; name a folder of your own in"
                    f" {HOME}"
                )
        if not (place / URL).is_file():
            atomic.write(place / URL, url)
    except OSError as error:
        raise ConfigError(
            f"--workdir={url}: no copies can be kept below {home} ({error.strerror}); name a folder"
            f" in {HOME}"
        ) from error
    return place


def _home(environ: Mapping[str, str]) -> Path:
    if named := environ.get(HOME):
        return local.folder(named, HOME).absolute()
    cache = environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "m4" / "mirrors"
    except RuntimeError as error:
        raise ConfigError(f"{HOME}: must name a folder; there is no home") from error


def url_of(folder: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The place in a bucket that a folder stands for; None for one that is itself meant.

    Raises SaveError for one that does not say any more what it stands for.
    """
    if folder is None or folder.parent != _home(environ):
        return None
    try:
        return (folder / URL).read_text()
    except OSError as error:
        raise SaveError(
            f"{folder}: was removed while a command had it; what is in the bucket stays: run the"
            " same command again"
        ) from error


@contextlib.contextmanager
def told(folder: Path | None) -> Iterator[None]:
    """Errors inside call a work directory in a bucket by its name there; an outage of it is one."""
    url = url_of(folder)
    try:
        yield
    except UserError as error:
        if url:
            error.args = tuple(str(line).replace(str(folder), url) for line in error.args)
        raise
    except Exception as error:
        if url and outages.passes(error):
            why = outages.words(error)
            raise Preempted(f"--workdir={url}: cannot be reached ({why})") from error
        raise


def shown(folder: Path | None) -> str:
    """What a person calls a work directory."""
    return url_of(folder) or str(folder)
