"""Commands on data, `python -m m4.data COMMAND ...`.

describe FOLDER        a built data set (or every one below FOLDER), or a MEDS data set: what is
                       in it
draft FOLDER           prints a first definition of a MEDS data set, or of a folder of CSV or
                       Parquet tables, to be checked and completed by hand
verify FOLDER RAW_DIR  every source file of a built data set is still the one that it was built
                       from, and every record can be read
download NAME RAW_DIR  the raw files of an open data set, verified; NAME is {downloads}

`python -m m4.data embed --help` and `python -m m4.data fake --help` say more on these two:

embed                  vectors of a frozen encoder for MIMIC-IV's notes, X-rays and ECGs
fake                   invented raw files in the layout of a data set that cannot be passed on
"""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("data.__main__")

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path

from m4 import local
from m4.data import data_sets
from m4.errors import ConfigError, DataError

OWN = {"embed": "sets.mimiciv.embeddings.command", "fake": "fake"}  # with options of their own
COMMANDS = ("describe", "draft", "verify", "download", *OWN)
USAGE = (
    "usage: python -m m4.data describe|draft FOLDER, verify FOLDER RAW_DIR, download NAME RAW_DIR,"
    " or embed|fake --help"
)


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code (see `m4.main`)."""
    return cli.guard(run, args)


def run(args: Sequence[str]) -> int:
    """Runs one command. Raises a UserError if it can't."""
    if [*args] in (["-h"], ["--help"]):
        print((__doc__ or "").format(downloads=" or ".join(downloads())))
        return 0
    if args and args[0] in OWN:
        return importlib.import_module(f"m4.data.{OWN[args[0]]}").main([*args[1:]])
    if any(arg.startswith("-") for arg in args):
        raise ConfigError(USAGE)
    match [*args]:
        case ["describe" | "draft" as command, folder]:
            place = local.folder(folder, "FOLDER")
            if not place.is_dir():
                raise DataError(f"{place}: no such folder")
            print("\n".join(_lines(command, place)))
        case ["verify", folder, raw_dir]:
            audit = importlib.import_module("m4.data.audit")
            places = local.folder(folder, "FOLDER"), local.folder(raw_dir, "RAW_DIR")
            print("\n".join(audit.lines(*places)))
        case ["download", name, raw_dir]:
            if name not in downloads():
                raise ConfigError(_no_download(name))
            data_sets.find(name).download(local.folder(raw_dir, "RAW_DIR"))
        case [command, *_] if command not in COMMANDS:
            near = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": {', '.join(COMMANDS)}"
            raise ConfigError(f"{command}: no such command{hint}")
        case _:
            raise ConfigError(USAGE)
    return 0


def downloads() -> list[str]:
    """The data sets that can be downloaded without an application."""
    return [name for name in data_sets.names() if hasattr(data_sets.find(name), "download")]


def _no_download(name: str) -> str:
    """Why a data set cannot be downloaded, and where it is to be had."""
    known = " or ".join(downloads())
    if name not in data_sets.names():
        return f"download: {name!r} is not {known}, which can be downloaded"
    where = getattr(data_sets.find(name), "WHERE", "")
    return f"download: {name} is not to be had without more ado: {where}; {known} is"


def _lines(command: str, place: Path) -> list[str]:
    survey = importlib.import_module("m4.data.sets.declared.survey")
    describe = importlib.import_module("m4.data.describe")
    meds = any((place / "data").rglob("*.parquet"))
    if command == "draft":
        propose = importlib.import_module("m4.data.sets.declared.propose")
        return survey.draft(place) if meds else propose.draft(place)
    if not describe.is_built(place) and meds:
        return survey.lines(place)
    found = [describe.lines(folder) for folder in describe.folders(place)]
    return [line for part in found for line in [*part, ""]]
