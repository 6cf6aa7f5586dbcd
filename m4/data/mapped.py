"""Padded rows of a split as memory-mapped files, for splits that memory should not hold.

    <built folder>/rows/<VERSION>/<split>/<key, '/' as '.'>.npy
                                          checksums.npy: uint32[keys, rows], CRC-32

They are written once, when the split is first opened, from the records, and read without decoding
anything: what a batch costs is the copy of its rows and, the first time, their checksums. Deleting
`rows` costs nothing but the time to write it again. They are as large as the padded rows; where
that does not fit, or the folder cannot be written, the split is decoded record by record instead.
"""

import contextlib
import errno
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import homes, temporary
from m4.errors import DataError, shortage

VERSION = 2  # to be raised when `m4.data.store` pads or scales differently
SPARE = 0.1  # share of the disk that is left free
SUMS = "checksums"

Rows = dict[str, np.ndarray]


class Mapped:
    """Arrays [N, ...] backed by files, compared with their checksums before their first use."""

    def __init__(self, place: Path, rows: Rows, sums_KN: np.ndarray):
        self.rows = rows
        self._place, self._sums_KN = place, sums_KN
        self._checked_KN = np.zeros(sums_KN.shape, bool)

    def check(self, indices: np.ndarray, keys: Collection[str] | None = None) -> None:
        """Reads what was not read before of these rows. Raises DataError if it has changed."""
        for k, (key, array) in enumerate(self.rows.items()):
            if keys is not None and key not in keys:
                continue
            fresh = indices[~self._checked_KN[k, indices]]
            wrong = fresh[_sums(array, fresh) != self._sums_KN[k, fresh]]
            if wrong.size:
                raise DataError(
                    f"{_file(self._place, key)}, row {wrong[0]}: differs from its checksum; delete"
                    f" {self._place.parent} to have it written again"
                )
            self._checked_KN[k, fresh] = True


def rows(
    folder: Path, split: str, layout: Mapping[str, np.ndarray], chunks: Callable[[], Iterator[Rows]]
) -> Mapped | None:
    """Read-only arrays [N, ...] backed by files, written first if they are not there.

    Args:
      folder: of the built data set.
      split: whose rows they are.
      layout: flat key -> an array of N rows' shape and dtype (zero strides will do).
      chunks: starts an iterator over consecutive chunks of the rows.

    Returns None where they can be neither read nor written. Raises SaveError if something else
    than a file has the name of their lock.
    """
    home = folder / "rows" / str(VERSION)
    if ready := _ready(home / split, layout):
        return ready
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.sweep(home)
        with homes.locked(home, "write rows"):
            if ready := _ready(home / split, layout):  # written while we waited
                return ready
            shutil.rmtree(home / split, ignore_errors=True)
            disk = shutil.disk_usage(home)
            if sum(array.nbytes for array in layout.values()) > disk.free - SPARE * disk.total:
                return None
            _write(home, split, layout, chunks())
            return _ready(home / split, layout)
    except OSError as error:
        faster = error.errno in (errno.EEXIST, errno.ENOTEMPTY)  # another, where nothing locks
        return _ready(home / split, layout) if faster else None


def _ready(place: Path, layout: Mapping[str, np.ndarray]) -> Mapped | None:
    """The arrays if they are there and whole. Raises UserError where memory or files run out."""
    try:
        return _open(place, layout)
    except Exception as error:  # a damaged header can raise anything
        if short := shortage(error):  # what cannot be opened now is not deleted for that
            raise short from error
        return None


def _open(place: Path, layout: Mapping[str, np.ndarray]) -> Mapped:
    found = {}
    for key, like in layout.items():
        array = np.load(_file(place, key), mmap_mode="r") if like.size else like
        if array.shape != like.shape or array.dtype != like.dtype:
            raise ValueError(f"{key}: another layout")
        found[key] = array.view(np.ndarray)
    sums_KN = np.load(_file(place, SUMS), mmap_mode="r")
    if sums_KN.shape != (len(found), len(found["patient"])) or sums_KN.dtype != np.uint32:
        raise ValueError("checksums of other rows")
    return Mapped(place, found, sums_KN)


def _sums(array: Any, indices: Iterable[int]) -> np.ndarray:
    return np.array([zlib.crc32(array[i : i + 1]) for i in indices], np.uint32)


def _write(
    home: Path, split: str, layout: Mapping[str, np.ndarray], chunks: Iterator[Rows]
) -> None:
    """Plain writes: a full disk is an error here, not a signal as in a mapped file."""
    with temporary.held(home) as place:
        new = place / split
        new.mkdir(mode=0o700)
        with contextlib.ExitStack() as stack:
            files = {key: stack.enter_context(open(_file(new, key), "wb")) for key in layout}
            for key, file in files.items():
                header = np.lib.format.header_data_from_array_1_0(layout[key])
                np.lib.format.write_array_header_1_0(file, header | {"fortran_order": False})
            sums: dict[str, list[np.ndarray]] = {key: [] for key in files}
            for chunk in chunks:
                for key, file in files.items():
                    array = np.ascontiguousarray(chunk[key])
                    file.write(array.data)
                    sums[key].append(_sums(array, range(len(array))))
        np.save(_file(new, SUMS), [np.concatenate(parts) for parts in sums.values()])
        new.rename(home / split)


def _file(place: Path, key: str) -> Path:
    return place / f"{key.replace('/', '.')}.npy"


def whole(row: Mapping[str, np.ndarray], num_rows: int) -> Rows:
    """The layout of `num_rows` rows from that of one, without memory behind it."""
    return {
        key: np.broadcast_to(array[:1], (num_rows, *array.shape[1:])) for key, array in row.items()
    }
