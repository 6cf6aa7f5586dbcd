"""Whose word it is that code outside m4 is run.

Whoever gives a configuration file runs what it names. A work directory may be anybody's: what its
config.json names is run only if this user has once given that name himself, which a mark in the
work directory says that only he could make, or gives `--trust_code`.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4 import atomic, regular
from m4.config.flags import Flags
from m4.config.plain import flatten, read_json
from m4.errors import ConfigError

MARK, KEY = "own", "own.key"
SIZE = 32  # bytes of a secret
LONGEST = 1000  # bytes of a mark


def foreign(config: Mapping[str, Any]) -> dict[str, str]:
    """Fields that name code outside m4, and the names."""
    return {
        path: value
        for path, value in flatten(config).items()
        if isinstance(value, str)
        and not value.startswith("m4.")
        and (
            (path == "data.name" and "." in value) or (path.startswith("method.") and ":" in value)
        )
    }


def imported(config: Mapping[str, Any]) -> bool:
    """Whether all code outside m4 that it names has been imported before."""
    return {name.partition(":")[0] for name in foreign(config).values()} <= sys.modules.keys()


def mark(folder: Path, config: Mapping[str, Any]) -> None:
    """Remembers in a work directory that this user has given these names.

    Raises ConfigError for a folder in the mark's place; anything else there is replaced.
    """
    names = foreign(config)
    if names and (key := _make()):
        try:
            with atomic.replaced(folder / MARK) as partial:
                _write(partial, _sign(key, names).encode())
        except IsADirectoryError as error:
            raise ConfigError(
                f"{folder / MARK}: is a folder, must be a file; move it away"
            ) from error


def require_of(flags: Flags) -> None:
    """`require` for the work directory that a command takes its configuration from, if it does."""
    if flags.workdir is None or flags.config or flags.config_json or flags.trust_code:
        return
    path = flags.workdir / "config.json"
    if path.is_file():
        require(flags.workdir, read_json(path), flags.overrides)


def require(folder: Path, config: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Raises ConfigError if a work directory names code outside m4 that this user never gave.

    `given` are fields that the command line replaces.
    """
    names = foreign(config)
    unsaid = {path: name for path, name in names.items() if path not in given}
    if not unsaid:
        return
    with contextlib.suppress(OSError, ValueError):
        found = _word(folder / MARK)
        if any(hmac.compare_digest(found, _sign(key, names)) for key in _keys()):
            return
    path, name = min(unsaid.items())
    raise ConfigError(
        f"{folder / 'config.json'}: {path}={name!r} is code outside m4, which would be run; give"
        " --config, or --trust_code if this work directory is yours"
    )


def _sign(key: bytes, names: Mapping[str, str]) -> str:
    return hmac.new(key, json.dumps(names, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _word(path: Path) -> str:
    """What a mark says; nothing through a link, which whoever made the folder has set."""
    return "" if path.is_symlink() else regular.read(path, LONGEST).decode("ascii")


def _make() -> bytes | None:
    """This user's secret, made if there is none; None without a place for it."""
    for path in _places():
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _own(path):
                _fill(path)
        if key := _own(path):
            return key
    return None


def _fill(path: Path) -> None:
    """A new secret where there is none, or one of this user's that was never written to its end.

    Of several that are made at once one counts, where there are links.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        _write(fresh, secrets.token_bytes(SIZE))
        if not os.path.lexists(path):
            try:
                os.link(fresh, path)
            except FileExistsError:
                return
            except OSError:  # no links here
                os.rename(fresh, path)
        elif _torn(path):
            os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """A new file on the disk, for its owner only."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _torn(path: Path) -> bool:
    """Whether a secret is this user's and not whole: of a killed process, a full disk."""
    status = os.stat(path, follow_symlinks=False)
    own = status.st_uid == os.geteuid() and stat.S_ISREG(status.st_mode)
    return own and status.st_size < SIZE


def _keys() -> list[bytes]:
    """The secrets that are this user's alone, also where older versions kept them."""
    return [key for key in map(_own, _places()) if key]


def _places() -> list[Path]:
    """The user's own folder, which no cache shared by several is; that only without a home."""
    places = []
    with contextlib.suppress(RuntimeError):
        state = os.environ.get("XDG_STATE_HOME")
        places.append(Path(state) if state else Path.home() / ".local/state")
    with contextlib.suppress(RuntimeError):
        cache = os.environ.get("M4_CACHE") or os.environ.get("XDG_CACHE_HOME")
        places.append(Path(cache) if cache else Path.home() / ".cache")
    return [place / "m4" / KEY for place in places]


def _own(path: Path) -> bytes | None:
    """A secret that nobody else can read or has put there."""
    with contextlib.suppress(OSError):
        status = os.stat(path, follow_symlinks=False)
        alone = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if alone and stat.S_ISREG(status.st_mode) and len(key := path.read_bytes()) >= SIZE:
            return key
    return None
