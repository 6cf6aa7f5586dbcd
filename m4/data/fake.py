"""Small invented raw files in exactly the layout of a data set that cannot be passed on.

    python -m m4.data fake rsna raw
    python -m m4.main --config=configs/m4oe_rsna.py:tiny --config.data.raw_dir=raw --workdir=runs/x

To try a pipeline before access is granted, and for tests. Nothing in them is or resembles a
person: numbers come from a generator, and a label shifts them a little so that there is something
to learn. Results on them mean nothing.
"""

import argparse
import csv
import gzip
from collections.abc import Iterable
from pathlib import Path

from m4 import local
from m4.data import data_sets
from m4.errors import ConfigError


def invented() -> dict[str, tuple[str, dict]]:
    """Name of some files -> the data set that invents them, and its options."""
    found = {}
    for name in data_sets.names():
        for files, options in getattr(data_sets.find(name), "INVENTED", {}).items():
            found[files] = name, options
    return found


def write(name: str, folder: Path | str, *, patients: int = 40, seed: int = 0) -> Path:
    """Write the raw files of `patients` invented patients under `folder`; returns their root.

    Raises ConfigError for an unknown name, too few patients, or a folder with files of that name.
    """
    known = invented()
    if name not in known:
        raise ConfigError(f"fake: {name!r} is none of {', '.join(known)}")
    if patients < 1:
        raise ConfigError(f"fake: patients={patients} must be at least 1")
    data_set, options = known[name]
    return data_sets.find(data_set).invent(Path(folder), patients=patients, seed=seed, **options)


def fresh(folder: Path) -> Path:
    """The folder, created; ConfigError if it holds anything, which may be real."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"fake: {folder} is not empty; real files are never overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_table(path: Path, rows: Iterable[Iterable]) -> None:
    """A csv file of a header and rows, compressed if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as handle:
        csv.writer(handle).writerows(rows)


def main(argv: list[str]) -> int:
    """Write the files that a command asks for; returns the exit code."""
    parser = argparse.ArgumentParser("python -m m4.data fake", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=[*invented()])
    parser.add_argument("folder", help="a raw folder; the data set gets its own folder in it")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**32 or args.patients < 1:
        raise ConfigError("--seed: from 0 to 4,294,967,295; --patients: 1 or more")
    root = write(
        args.name, local.folder(args.folder, "FOLDER"), patients=args.patients, seed=args.seed
    )
    print(f"{root}: invented {args.name} files of {args.patients} patients")
    return 0
