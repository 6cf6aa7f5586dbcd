"""A cohort's examples, checked, counted and written as records."""

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m4.data import index, records
from m4.data.cohort import Cohort, Example
from m4.errors import DataError, UserError, place

Progress = Callable[[str, int], None]  # called with the split and its records so far
REPORT_EVERY = 200
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_END = object()


def write(
    folder: Path,
    cohort: Cohort,
    seen: Callable[[str, Example], None],
    *,
    progress: Progress | None = None,
) -> Counter[str]:
    """Writes the records and keys of every split; returns how many payloads were cut.

    `seen` is called with the split and every record on its way.
    """
    cuts: Counter[str] = Counter()
    keys: dict[str, list[index.Key]] = {split: [] for split in cohort.splits}

    def encoded(split: str) -> Iterator[Example]:
        number = 0
        for number, example in enumerate(_examples(cohort, split), start=1):
            where = f"split {split}, record {number}"
            record = records.encode(cohort.spec, example, where=where, flow=cuts)
            seen(split, record)
            if "key" in example:
                keys[split].append(example["key"])
            if progress and number % REPORT_EVERY == 0:
                progress(split, number)
            yield record
        if number == 0:
            raise DataError(f"split {split} has no records")
        if progress:
            progress(split, number)

    starts = {split: lambda split=split: encoded(split) for split in cohort.splits}
    records.write(folder / "records", cohort.spec, starts, cohort.notes)
    for split, found in keys.items():
        if found:
            index.write(folder, split, found)
    return cuts


def flow(cohort: Cohort, cuts: Counter[str]) -> list[list[Any]]:
    """[step, count] of everything that was kept, dropped or cut."""
    return [[step, int(count)] for step, count in [*cohort.flow, *sorted(cuts.items())]]


def _examples(cohort: Cohort, split: str) -> Iterator[Example]:
    """The examples of a split; what its module raises is told by the record, not by its text."""
    examples: Iterator[Example] | None = None
    number = 0
    while True:
        number += 1
        with foreign(f"split {split}, record {number}"):
            examples = iter(cohort.splits[split]()) if examples is None else examples
            example = next(examples, _END)
        if example is _END:
            return
        yield example


@contextlib.contextmanager
def foreign(where: str) -> Iterator[None]:
    """Code of a data set module: its failure is a DataError that quotes nothing of the data."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            raise
        raise DataError(f"{where}: {place(error)}; --debug prints more") from error
