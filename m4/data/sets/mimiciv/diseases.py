"""Discharge codes -> the forty diseases of `diseases.toml`."""

import re
import tomllib
from pathlib import Path


def _expand(entry: str) -> list[str]:
    if "-" not in entry:
        return [entry]
    first, last = entry.split("-")
    letter = first[0] if first[0].isalpha() else ""
    width = len(first) - len(letter)
    numbers = range(int(first[len(letter) :]), int(last[len(letter) :]) + 1)
    return [f"{letter}{number:0{width}d}" for number in numbers]


DEPARTMENTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
TABLE = {
    name: {
        version: re.compile(
            "|".join(p for c in codes.split() for p in _expand(c)).replace("?", ".")
        )
        for version, codes in zip((10, 9), both, strict=True)
    }
    for diseases in DEPARTMENTS.values()
    for name, both in diseases.items()
}
NAMES = tuple(TABLE)
NOTHING = re.compile(r"(?!)")


def groups(icd_version: int, code: str) -> list[int]:
    """Numbers of the diseases that a code, with or without dot, belongs to; `?` is any digit."""
    code = code.replace(".", "").strip().upper()
    found = [TABLE[name].get(icd_version, NOTHING).match(code) for name in NAMES]
    return [j for j, match in enumerate(found) if match]
