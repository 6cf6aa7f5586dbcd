"""One site's people as the test split, and nobody of them in training: `data.leave_out`.

`site=North` tests on the records whose group column `site` says North. Who has one of those is in
no other split, not even with records of other sites; all others keep their part, those of the usual
test split train. A record whose site is not known counts as one of another site.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from m4.data.cohort import Cohort, Example
from m4.errors import ConfigError

SPLITS = ("train", "val", "test")
MOST, WIDEST = 12, 40  # categories that are named, and their letters


def parse(text: str) -> tuple[str, str]:
    """(group column, category) of 'site=North'; the category is "" where none is named."""
    column, _, category = text.partition("=")
    return column, category


def named(text: str) -> str:
    """The same text; raises ConfigError for a column without the category to be tested."""
    column, category = parse(text)
    if text and not category:
        raise ConfigError(
            f"data.leave_out={text!r}: names no category to test on; give data.leave_out="
            f"{column}=NAME, or --mode=crossval, which leaves out every {column} in turn"
        )
    return text


def leave_out(cohort: Cohort, text: str) -> Cohort:
    """The cohort with the records of a category as its test split.

    Reading it raises ConfigError if no record is of that category.
    """
    column, category = parse(text)

    def group_of(example: Example) -> str:
        groups = example.get("groups") if isinstance(example, Mapping) else None
        return str(groups.get(column) or "") if isinstance(groups, Mapping) else ""

    def inside(example: Example) -> bool:
        return group_of(example) == category

    away: set[Any] = set()

    def all_of(names: tuple[str, ...]) -> Iterator[Example]:
        for name in names:
            yield from cohort.splits[name]()

    def some(name: str) -> Iterator[Example]:
        if not away:
            away.update(_patient(e) for e in all_of(SPLITS) if inside(e))
        if not away:
            raise ConfigError(_unknown(text, {group_of(e) for e in all_of(SPLITS)} - {""}))
        if name == "test":
            yield from filter(inside, all_of(SPLITS))
            return
        for example in all_of(("val",) if name == "val" else ("train", "test")):
            if _patient(example) not in away:
                yield example

    def split(name: str):
        return lambda: some(name)

    return dataclasses.replace(cohort, splits=cohort.splits | {n: split(n) for n in SPLITS})


def _unknown(text: str, there: set[str]) -> str:
    """Why nobody is left out, with the categories that there are."""
    column, category = parse(text)
    names = [repr(name[:WIDEST]) for name in sorted(there)[:MOST]]
    more = [f"{len(there) - MOST} more"] if len(there) > MOST else []
    known = f"there are {', '.join(names + more)}" if there else f"no record says its {column}"
    return f"data.leave_out={text!r}: no record's {column} is {category!r}; {known}"


def _patient(example: Any) -> Any:
    """Whose example it is; what is none is refused when it is encoded."""
    return example.get("patient") if isinstance(example, Mapping) else None
