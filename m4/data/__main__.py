"""`python -m m4.data describe FOLDER` and `python -m m4.data draft FOLDER`.

describe   a built data set (or every one below FOLDER), or a MEDS data set: what is in it
draft      prints a first definition of a MEDS data set, to be checked and completed by hand

`python -m m4.data embed --help` and `python -m m4.data fake --help` say more on these two:

embed      vectors of a frozen encoder for MIMIC-IV's notes, X-rays and ECGs
fake       invented raw files in the layout of a data set that cannot be passed on
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from m4.data import manifest
from m4.errors import ConfigError, DataError, UserError

OWN = {"embed": "embed", "fake": "fake.__main__"}  # with options of their own


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code (see `m4.main`)."""
    try:
        if [*args] in (["-h"], ["--help"]):
            print(__doc__)
            return 0
        if args and args[0] in OWN:
            return importlib.import_module(f"m4.data.{OWN[args[0]]}").main([*args[1:]])
        if len(args) != 2 or args[0] not in ("describe", "draft"):
            raise ConfigError(
                "usage: python -m m4.data describe|draft FOLDER, or embed|fake --help"
            )
        command, place = args[0], Path(args[1]).expanduser()
        if not place.is_dir():
            raise DataError(f"{place}: no such folder")
        print("\n".join(_lines(command, place)))
    except UserError as error:
        print(*error.lines(), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


def _lines(command: str, place: Path) -> list[str]:
    from m4.data import describe  # heavy
    from m4.data.sets.meds import survey

    if command == "draft":
        return survey.draft(place)
    if not any(place.rglob(manifest.FILE)) and any((place / "data").rglob("*.parquet")):
        return survey.lines(place)
    found = [describe.lines(folder) for folder in describe.folders(place)]
    return [line for part in found for line in [*part, ""]]


if __name__ == "__main__":
    os.umask(0o077)  # what is derived from patients is for its owner only
    sys.exit(main(sys.argv[1:]))
