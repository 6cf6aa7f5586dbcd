"""New patients of a data set that is generated: a folder with `new.json` says which.

    {"seed": 7, "num_patients": 500, "missing": "mnar"}

The seed must be another than that of training, or they would be the same patients; options of the
data set that change how patients come about, and not what is known of them, may differ too.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4 import seal
from m4.data.cohort import Cohort, Example, checksums
from m4.errors import ConfigError, DataError

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
        given = seal.load(path)
    except (OSError, ValueError):
        raise DataError(
            f"{hint}; it is missing or no JSON, and new patients are generated"
        ) from None
    seed = given.get("seed") if isinstance(given, dict) else None
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise DataError(f"{hint}; seed must be a whole number from 0 to 4,294,967,295")
    if wrong := sorted({*map(str, given)} - {"seed", *may}):
        raise DataError(f"{hint}, not {', '.join(wrong)}")
    del given["seed"]
    if seed == trained:
        raise DataError(f"{hint}; {seed} is the seed of training: they would be the same patients")
    for name, value in given.items():
        if name in resolved and not _alike(value, resolved[name]):
            raise DataError(
                f"{path}: {name}={json.dumps(value)[:60]}: must be of the kind that it was in"
                f" training, {json.dumps(resolved[name])[:60]}"
            )
    options = {k: v for k, v in resolved.items() if k not in ("fold", "num_folds")} | given
    try:
        found = cohort(seed=seed, **options)
    except ConfigError as error:
        lines = [str(line).removeprefix("data.options.") for line in error.args]
        raise DataError(*(f"{path}: {line}" for line in lines)) from error
    except (TypeError, ValueError, KeyError) as error:
        what = json.dumps(given)[:200]
        raise DataError(f"{path}: {what}: the data set cannot use it ({error})") from error
    starts = [*found.splits.values()]

    def examples() -> Iterator[Example]:
        for example in itertools.chain.from_iterable(start() for start in starts):
            yield {**example, "key": (f"{seed}-{example['patient']}", None)}

    found.splits, found.sources = {"new": examples}, checksums(folder, [path])
    return found


def _alike(value: Any, before: Any) -> bool:
    """Whether a value of a JSON file is of the kind of another; numbers are finite."""
    if isinstance(before, bool) or isinstance(value, bool):
        return type(value) is type(before)
    if isinstance(before, int | float):
        whole = isinstance(before, int)
        return isinstance(value, int if whole else int | float) and math.isfinite(value)
    if isinstance(before, Mapping):
        common = {*value} & {*before} if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(_alike(value[k], before[k]) for k in common)
    if isinstance(before, list | tuple):
        same = isinstance(value, list) and len(value) == len(before)
        return same and all(map(_alike, value, before))
    return before is None or isinstance(value, type(before))
