"""Your own tables, CSV or Parquet, through one declarative file.

    data = dict(name="tables", options=dict(file="my_tables.toml"))

Long files ([[events]]: one row per event, with your column names) and wide ones ([[rows]]: one row
per record; a number becomes an event with the column's name as its code and no time, a text cell
one with the code `column//text`) are read by the same language as MEDS: see `docs/data.md`.
Shipped examples in `m4/data/sets/declared/`: `support2` and `mfeat`.
"""

from pathlib import Path
from typing import Any

from m4.data.cohort import Cohort
from m4.data.sets import meds
from m4.specs import DataSpec

VERSION = meds.VERSION
LICENCE = meds.LICENCE
WHERE = meds.WHERE


def resolved(**options: Any) -> dict[str, Any]:
    """The definition's content with the options put in; see `m4.data.sets.meds.resolved`."""
    return meds.resolved(**options, meds=False)


def spec(
    *, file: str = "", folder: str = "", split: str = "", fold: int = 0, num_folds: int = 0
) -> DataSpec:
    """The schema that the definition declares; options as in `m4.data.sets.meds.resolved`."""
    return meds.read_definition(
        file=file, folder=folder, split=split, fold=fold, num_folds=num_folds, meds=False
    ).data_spec()


new = meds.new  # what `resolved` said holds whose defaults they are


def missing_files(raw_dir: Path | str, **options: Any) -> list[str]:
    """One line per source of events and per task without files."""
    return meds.missing_files(raw_dir, **options, meds=False)


def cohort(raw_dir: Path | str, *, seed: int, **options: Any) -> Cohort:
    """One example per labelled subject (and time); see `m4.data.sets.meds.cohort`."""
    return meds.cohort(raw_dir, seed=seed, **options, meds=False)
