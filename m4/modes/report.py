"""`--mode=report`: report.html from the files of a work directory. Free of JAX."""

from pathlib import Path

import ml_collections

from m4.config import Flags
from m4.errors import DataError
from m4.eval import report


def run(config: ml_collections.ConfigDict | None, folder: Path, flags: Flags) -> None:
    """Rebuilds the report. See `m4.main`."""
    del config, flags
    build(folder)


def build(folder: Path) -> None:
    """Writes report.html. Raises DataError if there are no results yet."""
    if not any((folder / "results").glob("*.json")):
        raise DataError(f"{folder}: no results; --mode=train or --mode=eval makes them")
    print(f"report   {report.write(folder)}", flush=True)
