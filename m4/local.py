"""Folders lie on this machine's file systems: what names another place is refused.

`pathlib` would take `gs://bucket/run` for a folder `gs:` beside the program and fill it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from m4.errors import ConfigError

# gs://, s3://, file:// and what is left of them (gs:/); C:\ and C:/.
SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):[/\\]")
VARIABLES = ("M4_CACHE", "M4_DATA_DIR", "M4_RAW_DIR")
MOST_NAME, MOST_PLACE = 240, 1024  # bytes: with an ending or a folder what file systems take


def problem(text: str) -> str | None:
    """Why a text is no name of a local file or folder, in words that follow "field=text: "."""
    found = SCHEME.match(text)
    if not found:
        return None
    name = found.group(1)
    what = f"the drive {name}: of Windows" if len(name) == 1 else f"a place under {name}:"
    return (
        f"must be a local path, not {what}; mount it (a bucket through gcsfuse or s3fs, a share"
        " through NFS) and give the path of the mount"
    )


def folder(text: str, name: str, *, made: bool = False) -> Path:
    """A local path, `~` expanded. Raises ConfigError, which names the flag or variable `name`.

    Nothing lies below a file, and a folder that is to be `made` is none itself.
    """
    if wrong := problem(text):
        raise ConfigError(f"{name}={text}: {wrong}")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}={text}: no such user") from None
    for place in (*([path] if made else []), *path.parents):
        if os.path.isfile(place):
            raise ConfigError(f"{name}={text}: {place} is a file, no folder; choose another")
    return path


def is_name(text: str) -> bool:
    """Whether a text that others wrote can name a file or folder within a folder."""
    if text in ("", ".", "..") or {*text} & {*"/\\\0"}:
        return False
    return len(text.encode(errors="replace")) <= MOST_NAME


def below(folder: Path, text: str) -> Path | None:
    """The place below a folder that a text of others stands for, None if it stands for none.

    So nothing leads out but links that are in the folder, and to ask for the place raises nothing.
    """
    parts = Path(text).parts
    fits = len(text.encode(errors="replace")) <= MOST_PLACE
    return folder.joinpath(*parts) if parts and fits and all(map(is_name, parts)) else None


def require_variables(environ: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError if a variable of the environment names a folder that is not local."""
    wrong = {name: problem(environ.get(name, "")) for name in VARIABLES}
    lines = [f"{name}={environ[name]}: {why}" for name, why in wrong.items() if why]
    if lines:
        raise ConfigError(*lines)
