"""What looks like a date or a time in whatever notation, and which of it can be read.

Which of 03/06 is the day is not guessed: such a column is called one of times, and a build asks for
YYYY-MM-DD HH:MM.
"""

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime

SHARE = 0.5  # of the cells, or of the different ones, from which on a column is one of times
NAMED = re.compile(  # a column that is called a time
    r"time|date|datum|uhrzeit|zeit|fecha|hora|heure|stamp|(?<![a-z])(at|dt|day|when)(?![a-z])", re.I
)
_MONTH = (
    "(?:jan|feb|f[eé]v|mar|m[aä]r|mrz|apr|avr|abr|mai|may|mag|jun|jui|jul|aug|ao[uû]|ago|sep|set"
    "|oct|okt|out|ott|nov|dec|d[eé]c|dez|dic|ene|gen|giu|lug)[^\\W\\d]*"
)
_DAY, _YEAR, _M = "(?:0?[1-9]|[12][0-9]|3[01])", "(?:1[89]|2[01])[0-9]{2}", "(?:0?[1-9]|1[0-2])"
_CLOCK = (
    r"(?:[01]?[0-9]|2[0-4])(?:[:.h][0-5][0-9]){1,2}(?:[.,:][0-9]+)?"
    r"(?:\s*[ap]\.?\s?m\.?)?|(?:0?[1-9]|1[0-2])\s*[ap]\.?m\.?|(?:[01][0-9]|2[0-3])(?:h|uhr)?"
)
_ZONE = r"(?:\s*(?:Z|[A-Z]{2,4}|[+-][0-9]{2}:?(?:[0-9]{2})?))*"
_DATE = "|".join(
    (
        rf"{_YEAR}([-/. ]){_M}\1{_DAY}",
        rf"{_YEAR}([-/. ]){_DAY}\2{_M}",
        rf"{_DAY}([-/. ]){_M}\3(?:{_YEAR}|[0-9]{{2}})",
        rf"{_M}([-/. ]){_DAY}\4(?:{_YEAR}|[0-9]{{2}})",
        rf"{_DAY}(?:st|nd|rd|th|[.])?[- ./]*(?:de )?{_MONTH}[- ./,]*(?:de )?(?:{_YEAR}|[0-9]{{2}})",
        rf"{_MONTH}[- ./]*{_DAY}(?:st|nd|rd|th)?[- ./,]+(?:{_YEAR}|[0-9]{{2}})",
        rf"{_YEAR}[- ./]?{_MONTH}[- ./]?{_DAY}",
        rf"{_YEAR}[-/](?:0[1-9]|1[0-2])|(?:0[1-9]|1[0-2])/{_YEAR}|{_MONTH}[- ./,]*{_YEAR}",
        rf"{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?=[T _])",  # 20210306T0300
    )
)
_WEEKDAY = r"(?:[^\W\d]{2,10}[.,]*\s+)?"
_THEN = rf"(?:[\sT,:_]*(?:at |um |- )?(?:{_CLOCK}|[0-9]{{4,6}}){_ZONE})?(?:\sUhr)?"
MOMENT = re.compile(
    rf"(?:(?:{_CLOCK})[\s,]+)?{_WEEKDAY}(?:{_DATE}){_THEN}"
    rf"|{_WEEKDAY}{_MONTH}\s+{_DAY}\s+(?:{_CLOCK}){_ZONE}\s+{_YEAR}",  # Sat Mar 6 03:00:00 2021
    re.I,
)
BARE = re.compile(  # which could be a number or a ratio, too: what the column is called decides
    rf"(?:{_CLOCK}){_ZONE}|{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[0-9]{{4,6}})?"
    r"|1[0-9]{9}(?:[0-9]{3}){0,2}(?:\.0*)?|1\.[0-9]+e\+(?:09|12|15)"  # since 1970
    r"|[34][0-9]{4}(?:\.[0-9]+)?",  # days of a spreadsheet
    re.I,
)
HOURS = re.compile(r"[0-9]{1,2}(?:\.[0-9]*)?")  # 7 or 1.25: since the admission, perhaps
ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d(?::\d\d(?::\d\d(?:\.\d{1,9})?)?)?)?")
READ_ZONE = re.compile(r"\s*(?:UTC|GMT|Z|[+-]\d\d(?::?\d\d)?)$")


def unread(name: str, counts: Mapping[str, int]) -> int:
    """Cells that are no time that can be read, of a column that looks like one of times; else 0.

    Args:
      name: of the column.
      counts: its different cells, without blanks around them and without gaps, and how often
        each comes.
    """
    called = bool(NAMED.search(name))
    looks = [cell for cell in counts if _looks(cell, called=called)]
    if not looks:
        return 0
    share = sum(counts[cell] for cell in looks) / sum(counts.values())
    several = len(looks) > 2
    mostly = max(share, several * len(looks) / len(counts)) >= SHARE
    if not mostly and not (called and any(map(MOMENT.fullmatch, looks))):
        return 0
    return max(1, sum(count for cell, count in counts.items() if not _readable(cell)))


def _looks(cell: str, *, called: bool) -> bool:
    if MOMENT.fullmatch(cell):
        return True
    return called and not HOURS.fullmatch(cell) and bool(BARE.fullmatch(cell))


def _readable(cell: str) -> bool:
    plain = READ_ZONE.sub("", cell) if ISO.match(cell) and len(cell) > 10 else cell
    if ISO.fullmatch(plain):
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(plain)
            return True
    return False
