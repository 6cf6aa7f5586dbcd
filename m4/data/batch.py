"""Rows -> `m4.types.Batch`. The only place where a Batch is built.

`check` states the invariants that every method relies on; they are asserted for every batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from m4.data import store
from m4.specs import DataSpec
from m4.types import Batch, Stream, Target


def assemble(spec: DataSpec, rows: Mapping[str, Any], uid: Any, weight: Any) -> Batch:
    """A batch with NumPy leaves from the flat rows of a `Store`.

    Args:
      spec: schema of the rows.
      rows: flat keys as in `m4.data.store`, stacked to [B, ...].
      uid: [B] row numbers in the split, -1 on rows that only fill up.
      weight: [B] 0 on rows that only fill up. A row with nothing present gets 0 in any case.
    """
    inputs = {
        modality.name: Stream(
            **{part: rows[f"{modality.name}/{part}"] for part in store.layout(modality)}
        )
        for modality in spec.modalities
    }
    targets = {
        task.name: Target(rows[f"y/{task.name}"], rows[f"y/{task.name}/mask"])
        for task in spec.tasks
    }
    columns: dict[str, Any] = {
        "task": np.full(len(uid), -1, np.int32),
        "weight": np.asarray(weight, np.float32),
        "uid": np.asarray(uid, np.int32),
    }
    return finish(spec, Batch(inputs=inputs, targets=targets, **columns))


def empty(spec: DataSpec, num_rows: int) -> Batch:
    """A batch that only fills up."""
    uid = np.full(num_rows, -1)
    return assemble(spec, store.allocate(spec, num_rows), uid, np.zeros(num_rows))


def finish(spec: DataSpec, batch: Batch) -> Batch:
    """Zero the weight of rows with nothing present, and check. Ends every transform."""
    anything_B = np.any([stream.present for stream in batch.inputs.values()], axis=0)
    batch = batch.replace(weight=np.where(anything_B, batch.weight, np.float32(0)))
    check(spec, batch)
    return batch


def check(spec: DataSpec, batch: Batch) -> None:
    """Assert the invariants of `m4.types`: keys, shapes, dtypes, masks, zeros, finite values.

    Ragged modalities may be cut short (`m4.data.buckets`).
    """
    num_rows = len(batch.uid)
    assert [*batch.inputs] == [*spec.modality_names], [*batch.inputs]
    assert [*batch.targets] == [*spec.task_names], [*batch.targets]
    for modality in spec.modalities:
        stream: Any = batch.inputs[modality.name]
        name = modality.name
        parts = store.layout(modality.cut(stream.mask.shape[1]))
        for field in dataclasses.fields(Stream):
            array = getattr(stream, field.name)
            assert (array is None) == (field.name not in parts), (name, field.name)
            if array is not None:
                shape, dtype = parts[field.name]
                assert array.shape == (num_rows, *shape), (name, field.name, array.shape)
                assert array.dtype == dtype, (name, field.name, array.dtype)
        assert np.array_equal(stream.mask.any(-1), stream.present), f"{name}: mask, not present"
        if modality.kind == "series":
            assert not (stream.observed & ~stream.mask[..., None]).any(), f"{name}: observed"
        if modality.kind == "table":
            assert not (stream.observed & ~stream.mask).any(), f"{name}: observed"
        if stream.values.dtype.kind == "f":
            assert np.isfinite(stream.values).all(), f"{name}: not finite"
        absent = stream.values[~stream.present]
        assert not absent.any(), f"{name}: absent but not zero"
    for task in spec.tasks:
        target = batch.targets[task.name]
        assert np.isfinite(target.value).all(), f"{task.name}: not finite"
        assert target.value.shape[0] == target.mask.shape[0] == num_rows, task.name
