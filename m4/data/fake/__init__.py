"""Small invented raw files in exactly the layout of a data set that cannot be passed on.

    python -m m4.data fake rsna raw
    python -m m4.main --config=configs/m4oe_rsna.py:tiny --config.data.raw_dir=raw --workdir=runs/x

To try a pipeline before access is granted, and for tests. Nothing in them is or resembles a
person: numbers come from a generator, and a label shifts them a little so that there is something
to learn. Results on them mean nothing.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from m4.errors import ConfigError

WRITERS = {
    "embed": "mammography:embed",
    "rsna": "mammography:rsna",
    "vindr": "mammography:vindr",
    "gamma": "eyes:gamma",
    "adni": "adni:adni",
    "pam": "signals:pam",
    "mosi": "signals:mosi",
    "mosei": "signals:mosei",
    "mimic-linked": "mimic:linked",
}


def write(name: str, folder: Path | str, *, patients: int = 40, seed: int = 0) -> Path:
    """Write the raw files of `patients` invented patients under `folder`; returns their root.

    Raises ConfigError for an unknown name, too few patients, or a folder with files of that name.
    """
    if name not in WRITERS:
        raise ConfigError(f"fake: {name!r} is none of {', '.join(WRITERS)}")
    if patients < 1:
        raise ConfigError(f"fake: patients={patients} must be at least 1")
    module, _, function = WRITERS[name].partition(":")
    writer: Callable = getattr(importlib.import_module(f"m4.data.fake.{module}"), function)
    return writer(Path(folder), patients=patients, seed=seed)


def fresh(folder: Path) -> Path:
    """The folder, created; ConfigError if it holds anything, which may be real."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"fake: {folder} is not empty; real files are never overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
