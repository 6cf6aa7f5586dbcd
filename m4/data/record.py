"""One example <-> one record: checked, encoded, written, read back and decoded.

A record is an `m4.data.cohort.Example` with every modality and every task present: an absent
modality has no rows (a table: NaN everywhere), a missing label is NaN. Series and other ragged
payloads are stored unpadded; `m4.data.store` pads. The files are ArrayRecord, written and read
by tensorflow-datasets without TensorFlow; tensors are stored as bytes, because its default
encoding, a list of numbers, is about ten times slower to read and to write.

Letters: t rows of a ragged payload, f features.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from tensorflow_datasets.proto import tf_example_pb2

from m4.data.cohort import Example
from m4.data.foreign import numbers
from m4.errors import DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec


def encode(spec: DataSpec, example: Example, *, where: str, flow: Counter) -> Example:
    """Validate one example and give it the fixed structure and dtypes of a record.

    Rows are put in the order of their times; a payload longer than its `ModalitySpec.shape` keeps
    its last rows, which is counted in `flow`.

    Raises:
      DataError: naming `where` (data set, split and record number, never values) and the field.
    """
    _check_structure(example, where)
    unknown = {*example["inputs"]} - {*spec.modality_names} | (
        {*example["targets"]} - {*spec.task_names}
    )
    if unknown:
        raise DataError(f"{where}: {sorted(unknown)} are neither modalities nor tasks of the data")
    inputs = {}
    for modality in spec.modalities:
        payload = example["inputs"].get(modality.name)
        encoded = empty(modality)
        if payload is not None:
            encoded = _payload(modality, payload, where=f"{where}, {modality.name}")
            if modality.kind != "table" and len(encoded["values"]) > modality.length:
                flow[f"{modality.name}: records cut to their last {modality.length} rows"] += 1
                encoded = {key: array[-modality.length :] for key, array in encoded.items()}
            if not present(modality, encoded):
                encoded = empty(modality)
        inputs[modality.name] = encoded
    targets = {
        task.name: _target(task, target_shape(spec, task), example["targets"].get(task.name), where)
        for task in spec.tasks
    }
    return {"patient": np.int64(example["patient"]), "inputs": inputs, "targets": targets}


def _check_structure(example: Any, where: str) -> None:
    if not isinstance(example, Mapping):
        raise DataError(f"{where}: not a dict of patient, inputs and targets")
    if missing := {"patient", "inputs", "targets"} - {*example}:
        raise DataError(f"{where}: without {', '.join(sorted(missing))}")
    for field in ("inputs", "targets"):
        if not isinstance(example[field], Mapping):
            raise DataError(f"{where}: {field} must be a dict by name")
    patient = example["patient"]
    whole = isinstance(patient, int | np.integer) and not isinstance(patient, bool)
    if not whole or not -(2**63) <= patient < 2**63:
        raise DataError(f"{where}: patient must be a whole number below 2**63")


def present(modality: ModalitySpec, payload: dict[str, np.ndarray]) -> bool:
    """Whether an encoded payload holds anything."""
    values = payload["values"]
    return not np.isnan(values).all() if modality.kind in ("series", "table") else len(values) > 0


def empty(modality: ModalitySpec) -> dict[str, np.ndarray]:
    """The payload of an absent modality."""
    if modality.kind == "table":
        return {"values": np.full(modality.shape, np.nan, np.float32)}
    payload = {"values": np.zeros((0, *modality.shape[1:]), modality.dtype)}
    if modality.timed:
        payload["times"] = np.zeros(0, np.float32)
    return payload


def target_shape(spec: DataSpec, task: TaskSpec) -> tuple[int, ...]:
    """Shape of one row's target: a class index is (), a survival target (time, event).

    Maps of a segmentation task, [h, w, dim], are as large as the image that the task needs.
    """
    if task.kind == "segmentation":
        if not task.needs or spec.modality(task.needs[0]).kind != "image":
            raise ValueError(f"task {task.name}: `needs` must name the image that is segmented")
        return (*spec.modality(task.needs[0]).shape[1:3], task.dim)
    return {"multiclass": (), "cluster": (), "survival": (2,)}.get(task.kind, (task.dim,))


def _payload(modality: ModalitySpec, payload: dict, *, where: str) -> dict[str, np.ndarray]:
    wanted = {"values", "times"} if modality.timed else {"values"}
    if not isinstance(payload, Mapping):
        raise DataError(f"{where}: must be a dict of {', '.join(sorted(wanted))}")
    if {*payload} != wanted:
        raise DataError(f"{where}: has {sorted(payload)}, expected {sorted(wanted)}")
    values = numbers(payload["values"], modality.dtype, where=where)
    shape = modality.shape if modality.kind == "table" else modality.shape[1:]
    found = values.shape if modality.kind == "table" else values.shape[1:]
    if found != shape or (modality.kind != "table" and values.ndim != len(shape) + 1):
        raise DataError(f"{where}: values have shape {values.shape}, the schema {modality.shape}")
    if modality.vocab and values.size and not 0 <= values.min() <= values.max() < modality.vocab:
        raise DataError(f"{where}: codes outside 0..{modality.vocab - 1}")
    if values.dtype.kind == "f":
        missing_allowed = modality.kind in ("series", "table")
        wrong = np.isinf(values) if missing_allowed else ~np.isfinite(values)
        if wrong.any():
            raise DataError(f"{where}: {int(wrong.sum())} values are not finite")
    if not modality.timed:
        return {"values": values}
    times_t = numbers(payload["times"], np.float32, where=f"{where}, times")
    if times_t.shape != values.shape[:1]:
        raise DataError(f"{where}: {times_t.shape} times for {len(values)} rows")
    if not np.isfinite(times_t).all():
        raise DataError(f"{where}: {int((~np.isfinite(times_t)).sum())} times are not finite")
    order_t = np.argsort(times_t, kind="stable")
    return {"values": values[order_t], "times": times_t[order_t]}


def _target(task: TaskSpec, shape: tuple[int, ...], value: Any, where: str) -> np.ndarray:
    if value is None:
        return np.full(shape, np.nan, np.float32)
    where = f"{where}, {task.name}"
    array = numbers(value, np.float32, where=where)
    if array.size != int(np.prod(shape)):
        raise DataError(f"{where}: a label of shape {array.shape}, expected {shape}")
    known = array[~np.isnan(array)]
    counts = {"binary": 2, "multilabel": 2, "segmentation": 2, "multiclass": task.dim}
    classes = counts.get(task.kind)
    if task.kind == "survival" and known.size and not (known[0] >= 0 and known[-1] in (0, 1)):
        raise DataError(f"{where}: must be a time of at least 0 and an event of 0 or 1")
    if task.transform == "log1p" and (known <= -1).any():
        raise DataError(f"{where}: a label at or below -1 has no log1p")
    if np.isinf(known).any() or (classes and not np.isin(known, np.arange(classes)).all()):
        raise DataError(f"{where}: a label that is no {task.kind} label")
    return array.reshape(shape)


def write(
    folder: Path, spec: DataSpec, splits: dict[str, Callable[[], Iterator[Example]]], notes: str
) -> None:
    """Write encoded records, one ArrayRecord split after the other, in the order given."""
    tfds.disable_progress_bar()
    features = tfds.features.FeaturesDict(_features(spec))

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self):
            pass  # nobody published these records; the look-up would leave a temporary folder

    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return Info(builder=self, features=features, description=notes, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: enumerate(start()) for split, start in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError  # splits are handed over as iterators above

        _log_download_bytes = _log_download_done = lambda self: None  # they print otherwise

    Records(data_dir=folder).download_and_prepare(
        download_dir=folder / "downloads",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        file_format="array_record",
    )
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # created empty


class Source:
    """Random access to the records of a split."""

    def __init__(self, folder: Path, split: str, spec: DataSpec):
        """Open what `write` wrote into `folder`.

        `features.json` beside the records is not read: it names classes, which would be imported.
        """
        found = sorted(folder.glob(f"*/*/*-{split}.array_record-*"))
        if not found:
            raise DataError(f"{folder}: no records; delete the data set's folder to rebuild")
        self._bytes = array_record_data_source.ArrayRecordDataSource([*map(str, found)])
        self._spec = spec

    def __len__(self) -> int:
        return len(self._bytes)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Records at these positions; their arrays are read-only."""
        return [decode(self._spec, raw) for raw in self._bytes.__getitems__([*indices])]


def decode(spec: DataSpec, raw: bytes) -> Example:
    """The inverse of `encode` and `write` for one record.

    Equal to what tensorflow-datasets decodes, several times faster: the layout is known here.
    """
    features = tf_example_pb2.Example.FromString(raw).features.feature  # pyright: ignore

    def tensor(key, dtype, shape):
        return np.frombuffer(features[key].bytes_list.value[0], dtype).reshape(shape)

    inputs = {}
    for modality in spec.modalities:
        shape = modality.shape if modality.kind == "table" else (-1, *modality.shape[1:])
        name = f"inputs/{modality.name}"
        inputs[modality.name] = {"values": tensor(f"{name}/values", modality.dtype, shape)}
        if modality.timed:
            inputs[modality.name]["times"] = tensor(f"{name}/times", np.float32, (-1,))
    targets = {}
    for task in spec.tasks:
        key, shape = f"targets/{task.name}", target_shape(spec, task)
        if shape:
            targets[task.name] = tensor(key, np.float32, shape)
        else:
            targets[task.name] = np.float32(features[key].float_list.value[0])
    patient = np.int64(features["patient"].int64_list.value[0])
    return {"patient": patient, "inputs": inputs, "targets": targets}


def _features(spec: DataSpec) -> dict[str, Any]:
    def tensor(shape, dtype):
        encoding = tfds.features.Encoding.BYTES if shape else tfds.features.Encoding.NONE
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=encoding)

    inputs = {}
    for modality in spec.modalities:
        fixed = modality.shape if modality.kind == "table" else (None, *modality.shape[1:])
        inputs[modality.name] = {"values": tensor(fixed, modality.dtype)}
        if modality.timed:
            inputs[modality.name]["times"] = tensor((None,), np.float32)
    targets = {task.name: tensor(target_shape(spec, task), np.float32) for task in spec.tasks}
    return {"patient": tensor((), np.int64), "inputs": inputs, "targets": targets}
