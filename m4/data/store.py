"""Random access to a built split: padded, normalised, stacked rows.

Flat keys of a row (dtypes as in `m4.types`):

    <modality>/values    [*shape] z units for series, table and signal, 0 where not observed
    <modality>/mask      bool[T], True at real positions
    <modality>/present   bool[]
    <modality>/times     float32[T] hours (series, vectors), 0 on padding
    <modality>/observed  bool[T, f] (series) or bool[f] (table)
    y/<task>             float32 (int32 for multiclass), 0 where there is no label
    y/<task>/mask        float32[], or float32[dim] for multilabel
    patient              int64[]

A split below `ram_limit` is decoded once and kept in memory; a larger one is decoded once too, into
files that are mapped (`m4.data.mapped`), or, where those cannot be written, on every read.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import groups, mapped
from m4.data import manifest as manifests
from m4.data import record as records
from m4.data.cohort import Example
from m4.data.normalise import Normaliser
from m4.errors import DataError, place, shortage
from m4.specs import RAGGED_KINDS, DataSpec, ModalitySpec

Rows = dict[str, np.ndarray]
RAM_LIMIT = 4 * 2**30  # bytes per split
CHUNK = 256  # records decoded at once
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError)
_DAMAGED += (OverflowError, SyntaxError)  # the last by numpy's dtypes


class Store:
    """One split of a built data set."""

    def __init__(self, folder: Path | str, split: str, *, ram_limit: int = RAM_LIMIT):
        """Open `folder` as returned by `m4.data.build.prepare`.

        `ram_limit` is in bytes of padded rows; 0 reads from disk always. The first opening of a
        larger split decodes all of it.

        Raises:
          DataError: no such split, a damaged manifest, or fewer records than the manifest says.
        """
        self.folder, self.split = Path(folder), split
        self.manifest: dict[str, Any] = manifests.read(self.folder)
        self._rows: Rows | None = None
        self._mapped: mapped.Mapped | None = None
        with self._damaged():
            self._open(split, ram_limit)

    def _open(self, split: str, ram_limit: int) -> None:
        self.spec: DataSpec = manifests.spec_from(self.manifest["schema"])
        if split not in self.manifest["splits"]:
            known = [*self.manifest["splits"]]
            raise DataError(f"{self.folder}: no split {split!r}; it has {known}")
        self._source = records.Source(self.folder / "records", split, self.spec)
        self._normalisers = {
            name: Normaliser(fitted) for name, fitted in self.manifest["normalisers"].items()
        }
        expected = self.manifest["splits"][split]["rows"]
        if len(self) != expected:
            raise DataError(f"{self.folder}: split {split} has {len(self)} of {expected} records")
        row = allocate(self.spec, 1)
        self.row_bytes = sum(array.nbytes for array in row.values())
        self.in_ram = self.row_bytes * len(self) <= ram_limit
        if self.in_ram:
            self._rows = allocate(self.spec, len(self))
            for start, chunk in zip(range(0, len(self), CHUNK), self._chunks(), strict=True):
                for key, array in chunk.items():
                    self._rows[key][start : start + CHUNK] = array
        else:
            layout = mapped.whole(row, len(self))
            self._mapped = mapped.rows(self.folder, split, layout, self._chunks)
            self._rows = None if self._mapped is None else self._mapped.rows

    def verify(self) -> int:
        """How many records there are, all of them decoded anew. Raises DataError for damaged ones.

        Rows that are mapped from disk are copies of them, with checksums of their own.
        """
        with self._damaged():
            return sum(len(next(iter(rows.values()))) for rows in self._chunks())

    def _chunks(self) -> Iterator[Rows]:
        """All rows in order, some at a time."""
        for start in range(0, len(self), CHUNK):
            indices = range(start, min(start + CHUNK, len(self)))
            rows = allocate(self.spec, len(indices))
            self._decode(indices, rows)
            yield rows

    @contextlib.contextmanager
    def _damaged(self) -> Iterator[None]:
        """What reading damaged files ends in -> DataError that quotes nothing of them."""
        try:
            with np.errstate(all="ignore"):  # what comes out is checked
                yield
        except (*_DAMAGED, MemoryError) as error:
            if short := shortage(error):
                raise short from error
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise DataError(
                    f"{error.filename or self.folder}: cannot be read"
                    f" ({error.strerror or type(error).__name__}); the data may be sound"
                ) from error
            raise DataError(
                f"{self.folder}: damaged ({place(error)}); delete the folder to build it again"
            ) from error

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int] | np.ndarray, spec: DataSpec | None = None) -> Rows:
        """Rows at these positions of the split, stacked; the caller owns the arrays.

        `spec` is the store's with modalities cut short (`DataSpec.cut`), and so are the rows.
        Raises DataError for damaged ones.
        """
        indices, spec = np.asarray(indices, np.int64), spec or self.spec
        if self._mapped is not None:
            self._mapped.check(indices)
        if self._rows is not None:
            return {key: array[indices] for key, array in cut(self._rows, spec).items()}
        rows = allocate(self.spec, len(indices))
        with self._damaged():
            self._decode(indices.tolist(), rows)
        return cut(rows, spec)

    @functools.cached_property
    def longest(self) -> np.ndarray:
        """i64[N]: positions of each row's longest ragged modality, 0 if it has none."""
        ragged = [m.name for m in self.spec.modalities if m.kind in RAGGED_KINDS]
        masks = self.columns([f"{name}/mask" for name in ragged])
        counts = [mask.sum(-1, dtype=np.int64) for mask in masks.values()]
        return np.max([np.zeros(len(self), np.int64), *counts], axis=0)

    def groups(self) -> Rows:
        """Group column -> category of every row of the split, see `m4.data.groups`."""
        return groups.read(self.folder, self.split, self.spec, len(self))

    def columns(self, keys: Sequence[str]) -> Rows:
        """Some keys of every row of the split."""
        if self._mapped is not None:
            self._mapped.check(np.arange(len(self)), keys)
        if self._rows is not None:
            return {key: self._rows[key] for key in keys}
        with self._damaged():
            return stacked({key: chunk[key] for key in keys} for chunk in self._chunks())

    def present(self) -> np.ndarray:
        """bool[N, M]: which row has which modality."""
        found = self.columns([f"{name}/present" for name in self.spec.modality_names])
        return np.stack([*found.values()], axis=-1)

    def _decode(self, indices: Sequence[int], out: Rows) -> None:
        """Decode records into zeroed rows, then normalise them all at once."""
        for row, record in enumerate(self._source.read(indices)):
            _fill(self.spec, record, row, out)
        for modality in self.spec.modalities:
            values = out[f"{modality.name}/values"]
            if modality.name in self._normalisers:
                with np.errstate(all="ignore"):
                    values[...] = self._normalisers[modality.name](values)
                if not np.isfinite(values).all():
                    raise ValueError("a normaliser that makes infinite numbers")
            if modality.kind in ("series", "table"):
                observed = out[f"{modality.name}/observed"]
                np.multiply(values, observed, out=values)
            elif modality.kind == "signal":
                values *= out[f"{modality.name}/mask"][..., None]


def allocate(spec: DataSpec, num_rows: int) -> Rows:
    """Zeroed rows of a schema: nothing present, no label known."""
    rows: Rows = {"patient": np.zeros(num_rows, np.int64)}
    for modality in spec.modalities:
        for key, (shape, dtype) in layout(modality).items():
            rows[f"{modality.name}/{key}"] = np.zeros((num_rows, *shape), dtype)
    for task in spec.tasks:
        shape = (num_rows, *records.target_shape(spec, task))
        dtype = np.int32 if task.kind in ("multiclass", "cluster") else np.float32
        rows[f"y/{task.name}"] = np.zeros(shape, dtype)
        mask = shape if task.kind == "multilabel" else num_rows
        rows[f"y/{task.name}/mask"] = np.zeros(mask, np.float32)
    return rows


def stacked(chunks: Iterable[Rows]) -> Rows:
    """Consecutive chunks of rows as one."""
    found = [*chunks]
    return {key: np.concatenate([chunk[key] for chunk in found]) for key in found[0]}


def cut(rows: Rows, spec: DataSpec) -> Rows:
    """Views of rows without the positions that `spec` does not have."""
    views = dict(rows)
    for modality in spec.modalities:
        for part, (shape, _) in layout(modality).items():
            key = f"{modality.name}/{part}"
            if shape != rows[key].shape[1:]:
                views[key] = rows[key][:, : shape[0]]
    return views


def layout(modality: ModalitySpec) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of one row, per part of a modality."""
    parts: dict[str, tuple[tuple[int, ...], Any]] = {
        "values": (modality.shape, np.dtype(modality.dtype)),
        "mask": ((modality.length,), np.bool_),
        "present": ((), np.bool_),
    }
    if modality.timed:
        parts["times"] = ((modality.length,), np.float32)
    if modality.kind in ("series", "table"):
        parts["observed"] = (modality.shape, np.bool_)
    return parts


def _fill(spec: DataSpec, record: Example, row: int, out: Rows) -> None:
    out["patient"][row] = record["patient"]
    for modality in spec.modalities:
        payload, name = record["inputs"][modality.name], modality.name
        values = payload["values"]
        if not records.present(modality, payload):
            continue
        length = 1 if modality.kind == "table" else len(values)
        place = ... if modality.kind == "table" else slice(length)
        out[f"{name}/present"][row] = True
        out[f"{name}/mask"][row, :length] = True
        if modality.kind in ("series", "table"):
            observed = ~np.isnan(values)
            out[f"{name}/observed"][row][place] = observed
            values = np.where(observed, values, 0)
        out[f"{name}/values"][row][place] = values
        if modality.timed:
            out[f"{name}/times"][row, :length] = payload["times"]
    for task in spec.tasks:
        value = record["targets"][task.name]
        known = ~np.isnan(value)
        mask = known if task.kind == "multilabel" else known.all()
        out[f"y/{task.name}/mask"][row] = mask
        out[f"y/{task.name}"][row] = np.where(known & mask, value, 0)
