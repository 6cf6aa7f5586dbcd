"""Where MIMIC-IV's tables lie, which version they are, and reading them as a stream.

Only the standard library is imported here; pyarrow comes in with the first table.
"""

import csv
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from m4.errors import DataError

FOLDERS = ("hosp", "icu", "core")  # version 1 keeps admissions and patients in core
ENDINGS = (".csv.gz", ".csv")
HOME = {
    "icustays": "icu",
    "chartevents": "icu",
    "inputevents": "icu",
    "procedureevents": "icu",
}
BLOCK_BYTES = 1 << 20  # pyarrow reads up to 32 blocks ahead
NEVER = -(1 << 53)  # stands for an unknown time
# What tells releases apart whose folder and papers do not: files that came with them.
SIGNS = {
    "1.x": ("core",),
    "2.2 or later": ("hosp/provider", "icu/caregiver"),
    "2.0 or 2.1": ("hosp/omr", "icu/ingredientevents"),
}
DEMO_MARK = "demo_subject_id.csv"


def find_root(raw_dir, *, demo: bool) -> Path | None:
    """The folder that holds `hosp/` and `icu/`, of the highest version; None if there is none.

    Looked for: `mimiciv/`, `mimic-iv*/`, a version folder below those (`mimiciv/2.2/`), and
    `raw_dir` itself. A folder counts as the demo if its name says so or it holds the demo's list
    of subjects; demo and full data are never taken for each other.
    """
    raw_dir = Path(raw_dir)
    places = [raw_dir]
    for pattern in ("mimiciv*", "mimic-iv*", "mimiciv*/*", "mimic-iv*/*"):
        places += sorted(p for p in raw_dir.glob(pattern) if p.is_dir())
    found = [p for p in places if (p / "hosp").is_dir() and (p / "icu").is_dir()]
    found = [p for p in found if _is_demo(p) == demo]
    return max(found, key=lambda p: (_version_key(version(p)), str(p)), default=None)


def _is_demo(root: Path) -> bool:
    names = f"{root.resolve().parent.name}/{root.resolve().name}".lower()
    return bool(re.search(r"mimic-?iv[^/]*demo", names)) or (root / DEMO_MARK).exists()


def version(root: Path) -> str:
    """The release, e.g. "2.2", or "unknown".

    From the folder's name, else CHANGELOG or README, else roughly from the files there are.
    """
    for name in (root.resolve().name, root.resolve().parent.name):
        if name in FOLDERS:
            continue
        if match := re.search(r"(?:^|[-_v])(\d+\.\d+(?:\.\d+)?)$", name):
            return match.group(1)
    for name in ("CHANGELOG.txt", "CHANGELOG.md", "README.txt", "README.md"):
        path = root / name
        if path.is_file():
            text = path.read_text(errors="replace")[:4000]
            if match := re.search(r"(?i)mimic-iv[^\n]{0,40}?v?(\d+\.\d+(?:\.\d+)?)", text):
                return match.group(1)
    return next((found for found, sign in SIGNS.items() if _any(root, sign)), "unknown")


def _any(root: Path, names: tuple[str, ...]) -> bool:
    return any((root / f"{name}{ending}").exists() for name in names for ending in ("", *ENDINGS))


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)) or (-1,)


def table(root: Path, name: str) -> Path | None:
    """The file of one table, compressed or not; None if it is not there."""
    for folder in FOLDERS:
        for ending in ENDINGS:
            path = root / folder / f"{name}{ending}"
            if path.is_file():
                return path
    return None


def header(path: Path) -> list[str]:
    """The columns of a csv file. Raises DataError for a file that cannot be read."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as handle:
            return next(csv.reader(handle), [])
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None


def stream(path: Path, columns: dict[str, str]) -> Iterator:
    """Record batches of some columns of a csv file, in order, in bounded memory.

    Args:
      path: the file; `.gz` is decompressed on the way.
      columns: name -> "int", "float", "time" (microseconds: some tables carry fractions of a
        second) or "text". An empty field is null, in a text column the empty string.

    Raises:
      DataError: a file that is unreadable, cut short, or lacks a column. The message names the
        file and the place but quotes nothing of its content.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "time": pa.timestamp("us"),
        "text": pa.utf8(),
    }
    rows = 0
    try:
        reader = arrow.open_csv(
            path,
            read_options=arrow.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=arrow.ParseOptions(newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                include_columns=list(columns),
                column_types={name: types[kind] for name, kind in columns.items()},
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            rows += batch.num_rows
            yield batch
    except (pa.ArrowKeyError, KeyError):
        raise DataError(f"{path}: needs the columns {', '.join(columns)}; one is missing") from None
    except (pa.ArrowException, OSError, EOFError) as error:
        kind = "cut short or corrupt" if isinstance(error, OSError | EOFError) else "malformed"
        raise DataError(
            f"{path}: {kind} after {rows} rows ({type(error).__name__}); download it again"
        ) from None


def seconds(column):
    """A time column as whole seconds since 1970, int64, `NEVER` where it is null."""
    import numpy as np
    import pyarrow as pa

    known = column.is_valid().to_numpy(zero_copy_only=False)
    micro = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(known, micro // 1_000_000, NEVER)


def read(root: Path, name: str, columns: dict[str, str]):
    """A small table as a pyarrow Table; DataError when its file is missing."""
    import pyarrow as pa

    path = table(root, name)
    if path is None:
        raise DataError(f"{root}: no file {name}.csv.gz")
    batches = list(stream(path, columns))
    if not batches:
        raise DataError(f"{path}: no rows")
    return pa.Table.from_batches(batches)
