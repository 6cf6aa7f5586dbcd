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
    """A mapping from (ICD version, code) to phenotype indices."""

    def __init__(self, exact, prefixes):
        self._exact, self._prefixes = exact, prefixes

    def __call__(self, icd_version: int, code: str) -> tuple[int, ...]:
        """Indices into `NAMES`; dots and blanks in the code do not matter."""
        code = code.replace(".", "").strip().upper()
        return tuple(j for j in range(len(NAMES)) if self._member(j, int(icd_version), code))

    def _member(self, j, icd_version, code):
        if (icd_version, code) in self._exact[j]:
            return self._exact[j][icd_version, code]
        for length in range(len(code), 0, -1):
            if (icd_version, code[:length]) in self._prefixes[j]:
                return self._prefixes[j][icd_version, code[:length]]
        return False


def builtin() -> Phenotypes:
    """The shipped tables."""
    exact, prefixes = [], []
    for name in NAMES:
        exact.append({})
        prefixes.append({})
        for entry in ICD9[name]:
            code, keep = entry.lstrip("-"), not entry.startswith("-")
            (prefixes if code.endswith("*") else exact)[-1][9, code.rstrip("*")] = keep
        for entry in ICD10[name]:
            prefixes[-1][10, entry.lstrip("-")] = not entry.startswith("-")
    return Phenotypes(exact, prefixes)


def load(path) -> Phenotypes:
    """A mapping from a csv file; see the module's docstring. DataError names a wrong line."""
    exact = [{} for _ in NAMES]
    try:
        with Path(path).open(newline="") as handle:
            for number, line in enumerate(csv.DictReader(handle), start=2):
                try:
                    key = int(line["icd_version"]), line["icd_code"].replace(".", "").upper()
                    exact[NAMES.index(line["phenotype"])][key] = True
                except (KeyError, ValueError, TypeError, AttributeError):
                    raise DataError(
                        f"{path}: line {number}: expected icd_version (9 or 10), icd_code and one "
                        f"of the phenotypes {', '.join(NAMES)}"
                    ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Phenotypes(exact, [{} for _ in NAMES])
