"""Grouping of a batch's modalities by kind and length."""

import numpy as np
import pytest

from m4.nn.encoders.modalities import gather, stack_series
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Stream
from tests import properties

SPEC = DataSpec(
    modalities=(
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("monitor", "series", (70, 2)),
        ModalitySpec("notes", "vectors", (2, 5)),
        ModalitySpec("labs", "series", (16, 3)),
        ModalitySpec("gas", "series", (17, 1)),
        ModalitySpec("vitals", "series", (64, 1)),
    ),
    tasks=(TaskSpec("death", "binary"),),
)


def test_order_is_series_by_length_then_vectors_then_tables():
    # Limits: labs 16; gas and vitals 64 (16 < 17, 64 <= 64); monitor 256.
    streams = gather(SPEC, properties.random_batch(SPEC))
    assert streams.names == ("labs", "gas", "vitals", "monitor", "notes", "static")
    assert streams.modality == (3, 4, 5, 1, 2, 0)


def test_gather_stacks_series_of_similar_length():
    batch = properties.random_batch(SPEC)
    inputs = gather(SPEC, batch)
    shapes = {limit: stack.values.shape for limit, stack in inputs.series.items()}
    rows = properties.ROWS
    assert shapes == {16: (rows, 1, 16, 3), 64: (rows, 2, 64, 1), 256: (rows, 1, 70, 2)}
    assert inputs.num_timed == 5
    gas = inputs.series[64].values[:, 0, :17]
    np.testing.assert_array_equal(gas, batch.inputs["gas"].values)
    times = inputs.series[64].times[:, 0, :17] * SPEC.hours
    np.testing.assert_allclose(times, batch.inputs["gas"].times, rtol=1e-6)


def test_unknown_kinds_are_refused():
    image = ModalitySpec("cxr", "image", (1, 8, 8, 1))
    spec = DataSpec((image,), (TaskSpec("death", "binary"),))
    with pytest.raises(ValueError, match="modality cxr: no encoder for kind 'image'"):
        gather(spec, properties.random_batch(spec))


def test_stacking_pads_length_and_width_and_cleans():
    def stream(steps, width, present):
        return Stream(
            values=np.full((1, steps, width), np.nan, np.float32),
            mask=np.ones((1, steps), bool),
            present=np.array([present]),
            times=np.full((1, steps), 24.0, np.float32),
            observed=np.zeros((1, steps, width), bool),
        )

    stack = stack_series([stream(2, 3, True), stream(4, 1, False)], hours=48.0)
    assert stack.values.shape == (1, 2, 4, 3)
    assert not stack.values.any() and not stack.observed.any()
    np.testing.assert_array_equal(stack.mask[0], [[1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(stack.times[0], [[0.5, 0.5, 0, 0], [0, 0, 0, 0]])
