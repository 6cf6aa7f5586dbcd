"""New patients of a data set that is generated: a folder with `new.json` says which.

    {"seed": 7, "num_patients": 500, "missing": "mnar"}

The seed must be another than that of training, or they would be the same patients; options of the
data set that change how patients come about, and not what is known of them, may differ too.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4.data.cohort import Cohort, Example, checksums
from m4.errors import DataError

FILE = "new.json"


def new(
    cohort: Callable[..., Cohort],
    folder: Path,
    resolved: Mapping[str, Any],
    *,
    trained: int,
    may: Sequence[str],
) -> Cohort:
    """All that `cohort` generates as `new.json` says, as the split 'new'.

    Args:
      cohort: of the data set.
      folder: holds `new.json`.
      resolved: the data set's options in training.
      trained: their seed.
      may: names of those that may differ.

    Raises:
      DataError: no such file, or one that says something else.
    """
    path = folder / FILE
    hint = f'{path}: give {{"seed": 1}} and, as you like, {", ".join(may)}'
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError):
        raise DataError(
            f"{hint}; it is missing or no JSON, and new patients are generated"
        ) from None
    if not isinstance(given, dict) or type(given.get("seed")) is not int:
        raise DataError(f"{hint}; seed must be a whole number")
    if wrong := sorted({*map(str, given)} - {"seed", *may}):
        raise DataError(f"{hint}, not {', '.join(wrong)}")
    seed = given.pop("seed")
    if seed == trained:
        raise DataError(f"{hint}; {seed} is the seed of training: they would be the same patients")
    options = {k: v for k, v in resolved.items() if k not in ("fold", "num_folds")} | given
    found = cohort(seed=seed, **options)
    starts = [*found.splits.values()]

    def examples() -> Iterator[Example]:
        for example in itertools.chain.from_iterable(start() for start in starts):
            yield {**example, "key": (f"{seed}-{example['patient']}", None)}

    found.splits, found.sources = {"new": examples}, checksums(folder, [path])
    return found
