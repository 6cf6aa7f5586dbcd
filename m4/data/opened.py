"""`m4.data.open`: a data set from Python, built if need be."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4 import local
from m4.data import aggregate, build, describe
from m4.data import manifest as manifests
from m4.data.loader import eval_batches
from m4.data.store import Store
from m4.errors import ConfigError
from m4.specs import DataSpec
from m4.types import Batch


class Dataset:
    """Records of a built data set, by split."""

    def __init__(self, folder: Path):
        """Opens what `build.prepare` built. DataError for a folder that is none, or damaged."""
        self.folder = folder
        self.manifest: dict[str, Any] = manifests.read(folder)
        self.spec: DataSpec = manifests.spec_from(self.manifest["schema"])

    def __repr__(self) -> str:
        """Name, records of every split, modalities and tasks."""
        rows = ", ".join(
            f"{name} {split['rows']}" for name, split in self.manifest["splits"].items()
        )
        names = ", ".join(self.spec.modality_names), ", ".join(self.spec.task_names)
        return f"<m4.data {self.manifest['name']}: {rows}; {names[0]} -> {names[1]}>"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest["splits"])

    def split(self, name: str) -> Store:
        """The records of a split: `len`, and padded rows by number. DataError if there is none."""
        return Store(self.folder, name)

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """Every record of a split once, in order; the last batch is filled up with weight 0."""
        return eval_batches(self.split(split), size)

    def table(self, split: str) -> dict[str, np.ndarray]:
        """A column per aggregate of every modality (`m4.data.aggregate`) and per label.

        `pandas.DataFrame(data.table("train"))`. In z units, NaN where nothing was observed; labels
        are `y/<task>`, NaN where unknown.
        """
        store = self.split(split)
        values, names = aggregate.table(store)
        found = dict(zip(names, values.T, strict=True))
        for task in self.spec.task_names:
            columns = store.columns([f"y/{task}", f"y/{task}/mask"])
            value, mask = columns[f"y/{task}"], columns[f"y/{task}/mask"]
            if value.ndim == 1 or value.shape[1:] == (1,):
                flat = value.reshape(len(store)).astype(np.float32)
                known = mask.reshape(len(store), -1)[:, 0] > 0
                found[f"y/{task}"] = np.where(known, flat, np.nan)
        return found

    def describe(self) -> str:
        """What is in it, and what looks suspicious."""
        return "\n".join(describe.lines(self.folder))


def open(  # noqa: A001 (it is called m4.data.open)
    name: str | Path,
    *,
    raw_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    quiet: bool = True,
    **options: Any,
) -> Dataset:
    """A data set by its name, 'physionet2012' or 'mylab.data', or the folder of a built one.

    Args:
      name: one of those that `m4-moe --list` shows, an importable module, or a folder.
      raw_dir: root of the raw files; by default M4_RAW_DIR, else `raw`.
      data_dir: where built data are kept; by default M4_DATA_DIR, else `data`.
      seed: key of the split.
      quiet: print nothing while it is built.
      **options: of the data set, as `data.options` of a configuration: `file="ward.toml"`.

    Raises:
      ConfigError: no such data set, or wrong options.
      DataError: raw files that are missing or cannot be used.
    """
    place = Path(name)
    if place.is_dir() and (
        isinstance(name, Path) or place.parts[1:] or not place.name.isidentifier()
    ):
        return Dataset(place)
    if isinstance(name, Path) or len(place.parts) > 1:
        raise ConfigError(f"{name}: no such folder of a built data set")
    folders = {
        variable: local.folder(str(given or os.environ.get(variable) or default), variable)
        for variable, given, default in (
            ("M4_RAW_DIR", raw_dir, "raw"),
            ("M4_DATA_DIR", data_dir, "data"),
        )
    }
    told = None if quiet else lambda split, rows: print(f"building {name} {split}: {rows} records")
    try:
        folder = build.prepare(
            str(name), *folders.values(), seed=seed, options=options, progress=told
        )
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"{name}: {str(error).partition('() ')[2] or error}") from None
    return Dataset(folder)
