"""Checks of a data set's options: all that is wrong at once, in the same words everywhere."""

from collections.abc import Collection, Iterable
from typing import Any

from m4.errors import ConfigError

Known = tuple[str, Any, Collection[str]]  # option, what was chosen, what there is


def check(
    *,
    one: Iterable[Known] = (),
    some: Iterable[Known] = (),
    least: Iterable[tuple[str, float, float]] = (),
    shares: Iterable[tuple[str, float]] = (),
    also: Iterable[str] = (),
) -> None:
    """Raises ConfigError with a line for each wrong option.

    Args:
      one: (option, value, known) of a single name.
      some: the same of several names, at least one.
      least: (option, value, its least).
      shares: (option, value) of shares from 0 to 1.
      also: further problems, which name their option themselves.
    """
    problems = [
        f"{option}: {value!r} is none of {', '.join(known)}"
        for option, value, known in one
        if value not in known
    ]
    for option, names, known in some:
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            problems.append(f"{option}: {unknown} not in {', '.join(known)}")
    problems += [f"{o}: {value} must be at least {low}" for o, value, low in least if value < low]
    problems += [f"{o}: {s} must be between 0 and 1" for o, s in shares if not 0 <= s <= 1]
    problems = [f"data.options.{problem}" for problem in problems] + [*also]
    if problems:
        raise ConfigError(*problems)
