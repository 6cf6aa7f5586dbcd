"""`--mode=report`: report.html from the files of a work directory. Free of JAX."""

from pathlib import Path

import ml_collections
from jinja2 import UndefinedError

from m4.config import Flags
from m4.errors import ConfigError, DataError, place
from m4.eval import damage
from m4.eval.report import page as report

# What a document with parts missing or of another type ends in when it is shown.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, UndefinedError)


def run(config: ml_collections.ConfigDict | None, folder: Path, flags: Flags) -> None:
    """Rebuilds the report. See `m4.main`."""
    del config, flags
    build(folder)


def build(folder: Path) -> None:
    """Writes report.html. Raises DataError if there are no results yet, or if they are damaged."""
    results = folder / "results"
    if not any(results.glob("*.json")):
        raise DataError(f"{folder}: no results; --mode=train or --mode=eval makes them")
    lines = damage.lines(folder)
    for line in lines:
        print(f"m4: warning: {line}", flush=True)
    try:
        path = report.write(folder)
    except PermissionError as error:
        raise ConfigError(f"--workdir={folder}: cannot be used ({error.strerror})") from error
    except _MALFORMED as error:
        raise DataError(
            f"{results}: not as m4 writes them ({place(error)}); --mode=eval writes them again"
        ) from error
    if not report.readable(folder):
        found = [f"{folder}/{line}" for line in lines if line.startswith("results/")]
        raise DataError(f"{results}: none can be read; --mode=eval writes them again", *found)
    print(f"report   {path}", flush=True)
