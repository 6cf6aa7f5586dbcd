"""Cells of tables: counts below `smallest` are never shown, and no text is computed."""

# What a spreadsheet takes a cell for a formula by, or overlooks in front of one; the last four are
# those of Japanese and Chinese keyboards.
FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")


def uncomputed(text: str) -> str:
    """A text that no spreadsheet takes for a formula: such a one has ' in front.

    A carriage return is a blank: `csv` may leave it unquoted, and what follows would begin a row.
    """
    text = text.replace("\r", " ")
    return f"'{text}" if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA) else text


def count(number: int, smallest: int) -> str:
    """The number, unless it is small; none is no secret."""
    return f"{number:,}" if number >= smallest or number == 0 else f"<{smallest}"


def tens(number: int) -> int:
    """A count that may be shown, to tens: so differences of two tell of no small one."""
    return int(round(int(number), -1))


def shown(number: int, smallest: int) -> int | None:
    """`tens`; None below `smallest`."""
    return tens(number) if number >= smallest else None


def tells_of_few(part: float, total: float, smallest: int) -> bool:
    """Whether a share of a total tells of few on either of its sides."""
    return 0 < part < smallest or 0 < total - part < smallest


def share(part: int, total: int, smallest: int, *, digits: int, unknown: str) -> str:
    """A percentage; close to none or to all it is not given exactly."""
    if total < smallest:
        return unknown
    if tells_of_few(part, total, smallest):
        return "rare" if 0 < part < smallest else "nearly all"
    return f"{part / total:.{digits}%}"
