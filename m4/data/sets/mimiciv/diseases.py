"""Discharge codes -> the forty diseases of `diseases.toml`."""

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
        version: [p for entry in codes.split() for p in _expand(entry)]
        for version, codes in zip((10, 9), both, strict=True)
    }
    for diseases in DEPARTMENTS.values()
    for name, both in diseases.items()
}
NAMES = tuple(TABLE)


def groups(icd_version: int, code: str) -> list[int]:
    """Numbers of the diseases that a code, with or without dot, belongs to; `?` is any digit."""
    code = code.replace(".", "").strip().upper()

    def begins(prefix: str) -> bool:
        return len(code) >= len(prefix) and all(
            p in ("?", c) for p, c in zip(prefix, code, strict=False)
        )

    return [j for j, name in enumerate(NAMES) if any(map(begins, TABLE[name].get(icd_version, ())))]
