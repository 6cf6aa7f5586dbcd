"""Identifiers of patients, stays and studies in one form, whatever file and type they come in."""

import decimal
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from m4.errors import DataError

Check = Callable[[int | str], Any]
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "NaT")
NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.0*)?")
# As spreadsheets of any country write 1.23457E+12; 1E5 may be a ward.
SCIENTIFIC = re.compile(r"-?[0-9]+([.,][0-9]+[eE]\+?|[eE]\+)[0-9]+")
PADDED = re.compile(r"0[0-9]+")
FEW = 10  # of fewer identifiers one that matches is enough
NEARLY_NOBODY = 0.05  # share of the identifiers that could match
EXACT = 1 << 53  # beyond it a float stands for several whole numbers


def canonical(value: object) -> int | str | None:
    """7, 7.0, "7", " 7" and "7.0" are 7; other text is itself; what is missing is None.

    "007" stays "007": whether it is 7 is not guessed, see `Forms`.

    Raises:
      ValueError: saying what the value is instead of an identifier; it quotes nothing.
    """
    if value is None or value != value:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return _within(value)
    if isinstance(value, float | decimal.Decimal):
        if isinstance(value, float) and abs(value) > EXACT:
            raise ValueError("is a float beyond 2^53, where the last digits are lost")
        if value != int(value):
            raise ValueError("is not a whole number")
        return _within(int(value))
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}, expected identifiers")
    text = value.strip().strip("\ufeff")
    if text in MISSING:
        return None
    if SCIENTIFIC.fullmatch(text):
        raise ValueError("is a number in powers of ten, whose last digits are lost")
    found = NUMBER.fullmatch(text)
    if not found:
        if PADDED.fullmatch(text):
            _within(int(text))
        return text
    if found[2] and abs(int(found[1])) > EXACT:
        raise ValueError("is a float beyond 2^53, where the last digits are lost")
    return _within(int(found[1]))


def of_column(coded: Any, path: Path, name: str, first: int, check: Check | None) -> list:
    """The canonical forms of the dictionary of a dictionary-encoded Arrow array.

    Raises DataError with the file, column and row (there are `first` before the array's) for what
    is none, and for what `check` raises ValueError.
    """
    try:
        values = coded.dictionary.to_pylist()
    except (ValueError, OverflowError):  # times that Python does not have, text that is not UTF-8
        kind = coded.dictionary.type
        raise DataError(f"{path}: column {name!r} holds {kind}, expected identifiers") from None
    found = []
    for code, value in enumerate(values):
        try:
            found.append(canonical(value))
            if check and found[-1] is not None:
                check(found[-1])
        except ValueError as error:
            row = first + coded.indices.index(code).as_py() + 1
            raise DataError(f"{path}, row {row}: {name!r} {error}") from None
    return found


def text(value: object, where: str, forms: "Forms | None" = None) -> str:
    """The canonical form as text, empty for none. Raises DataError that names `where`.

    `forms` takes it in, and what it refuses is refused.
    """
    try:
        found = canonical(value)
        if forms and found is not None:
            forms.keep(found)
    except ValueError as error:
        raise DataError(f"{where} {error}") from None
    return "" if found is None else str(found)


def require_match(ours: Collection, theirs: Collection, where: str) -> None:
    """Raises DataError, `where` in front, if (nearly) none of many in one is in the other."""
    both, could = len({*ours} & {*theirs}), min(len({*ours}), len({*theirs}))
    if could >= FEW and nobody(both, could):
        raise DataError(f"{where}: {'hardly any' if both else 'none'} is there: written alike?")


def nobody(matched: int, could: int) -> bool:
    """Whether so few of those that could match do that the identifiers are not the same."""
    return could > 0 and matched <= (0 if could < FEW else NEARLY_NOBODY * could)


def require_number(identifier: int | str) -> None:
    """Raises ValueError for text."""
    if isinstance(identifier, str) and PADDED.fullmatch(identifier):
        raise ValueError("has leading zeros: whether 007 is 7 is not guessed")
    if isinstance(identifier, str):
        raise ValueError("is not a whole number")


def _within(number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise ValueError("is beyond 2^63")
    return number


class Forms:
    """How numbers are written in a data set: once 7 was seen, "007" is refused, and vice versa."""

    def __init__(self):
        self._forms: dict[int, int | str] = {}

    def keep(self, identifier: int | str) -> None:
        """Takes in a canonical identifier. Raises ValueError as `check` does."""
        self.check(identifier)
        if isinstance(identifier, int) or PADDED.fullmatch(identifier):
            self._forms[int(identifier)] = identifier

    def check(self, identifier: int | str) -> None:
        """Raises ValueError if what was kept has the same number in another form."""
        number = isinstance(identifier, int) or PADDED.fullmatch(identifier)
        if number and self._forms.get(int(identifier), identifier) != identifier:
            raise ValueError(
                "has leading zeros where another row or file has none, or the other way round: 007"
                " and 7 may be two subjects, so write each alike everywhere"
            )
