"""Are the raw files still those that a data set was built from, and its records whole?

Every byte is read. A build itself goes by size, times and inode of large files (`m4.data.build`).
"""

from pathlib import Path

from m4.data import manifest as manifests
from m4.data.cohort import sha256
from m4.data.describe import folders
from m4.data.store import Store
from m4.errors import DataError


def lines(place: Path, raw_dir: Path) -> list[str]:
    """A line per built folder at or below `place`. Raises DataError that names what differs."""
    found, wrong = [], []
    for folder in folders(place):
        manifest = manifests.read(folder)
        absent = 0
        for name, source in manifest["sources"].items():
            path = raw_dir / name
            absent += not path.is_file()
            if path.is_file() and sha256(path) != source["sha256"]:
                wrong.append(f"{path}: is not the file that {folder} was built from")
        rows = 0
        for split in manifest["splits"]:
            rows += Store(folder, split, ram_limit=0).verify()
        files = len(manifest["sources"])
        if absent and absent == files:
            wrong.append(f"{raw_dir}: holds none of the {files} files that {folder} was built from")
        found.append(
            f"{folder}: {files - absent} of {files} source files unchanged, {rows} records"
        )
    if wrong:
        raise DataError(*wrong)
    return found
