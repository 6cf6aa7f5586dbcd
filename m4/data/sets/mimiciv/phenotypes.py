"""Discharge diagnosis codes -> the 25 phenotypes of `phenotypes.toml`.

`load(path)` takes the mapping from a file instead: a csv with header
`icd_version,icd_code,phenotype`, one exact code a line, phenotypes named as in `NAMES`.
"""

import csv
import tomllib
from pathlib import Path

from m4.errors import DataError

CODES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
ICD9 = {name: codes.split() for name, codes in CODES["icd9"].items()}
ICD10 = {name: codes.split() for name, codes in CODES["icd10"].items()}
NAMES = tuple(ICD9)


class Phenotypes:
    """A mapping from (ICD version, code) to phenotype indices.

    `rules`: per phenotype (version, beginning of a code) -> whether it belongs to it; the longest
    beginning counts, and before all a whole code, which ends in "$".
    """

    def __init__(self, rules: list[dict[tuple[int, str], bool]]):
        self._rules = rules

    def __call__(self, icd_version: int, code: str) -> tuple[int, ...]:
        """Indices into `NAMES`; dots and blanks in the code do not matter."""
        code = f"{_plain(code)}$"
        keys = [(int(icd_version), code[:length]) for length in range(len(code), 0, -1)]
        found = [next((rule[k] for k in keys if k in rule), False) for rule in self._rules]
        return tuple(j for j, member in enumerate(found) if member)


def _plain(code: str) -> str:
    return code.replace(".", "").strip().upper()


def builtin() -> Phenotypes:
    """The shipped tables."""
    rules = []
    for name in NAMES:
        entries = [(9, f"{entry}$".replace("*$", "")) for entry in ICD9[name]]
        entries += [(10, entry) for entry in ICD10[name]]
        rules.append({(v, e.lstrip("-")): not e.startswith("-") for v, e in entries})
    return Phenotypes(rules)


def load(path) -> Phenotypes:
    """A mapping from a csv file; see the module's docstring. DataError names a wrong line."""
    rules: list[dict] = [{} for _ in NAMES]
    try:
        with Path(path).open(newline="") as handle:
            for number, line in enumerate(csv.DictReader(handle), start=2):
                try:
                    key = int(line["icd_version"]), f"{_plain(line['icd_code'])}$"
                    rules[NAMES.index(line["phenotype"])][key] = True
                except (KeyError, ValueError, TypeError, AttributeError):
                    raise DataError(
                        f"{path}: line {number}: expected icd_version (9 or 10), icd_code and one "
                        f"of the phenotypes {', '.join(NAMES)}"
                    ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Phenotypes(rules)
