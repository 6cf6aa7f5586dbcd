"""How few rows or patients may be shown: counts below `smallest` never are."""


def count(number: int, smallest: int) -> str:
    """The number, unless it is small; none is no secret."""
    return f"{number:,}" if number >= smallest or number == 0 else f"<{smallest}"


def share(part: int, total: int, smallest: int, *, digits: int, unknown: str) -> str:
    """A percentage; close to none or to all it is not given exactly."""
    if total < smallest:
        return unknown
    if 0 < part < smallest:
        return "rare"
    if 0 < total - part < smallest:
        return "nearly all"
    return f"{part / total:.{digits}%}"
