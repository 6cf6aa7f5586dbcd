"""Counts and shares for people: what is of few patients is not given exactly."""

from m4 import cells

SMALLEST = 10  # smaller counts are not shown


def share(part: int, total: int) -> str:
    """A percentage for people; where few are few or all, not exactly."""
    return cells.share(part, total, SMALLEST, digits=0, unknown="some")
