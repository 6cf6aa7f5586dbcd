"""Drift and noise of values: what moves, by how much, and what stays."""

import numpy as np
import pytest

from m4.audit.random_rows import random_batch
from m4.data import disturb
from m4.data.store import Store, allocate, cut, layout
from m4.specs import DataSpec, ModalitySpec, TaskSpec

SPEC = DataSpec(
    (
        ModalitySpec("vitals", "series", (5, 3)),
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("notes", "vectors", (2, 3)),
        ModalitySpec("icd", "codes", (4,), dtype="int32", vocab=9),
        ModalitySpec("scan", "image", (1, 8, 8, 1), dtype="uint8"),
    ),
    (TaskSpec("death", "binary"),),
)
ROWS = 400


class Rows(Store):
    """A split in memory."""

    def __init__(self, rows):
        self.spec, self.rows = SPEC, rows

    def __len__(self):
        return ROWS

    def read(self, indices, spec=None):
        return cut({key: x[np.asarray(indices)] for key, x in self.rows.items()}, spec or self.spec)

    def columns(self, keys):
        return {key: self.rows[key] for key in keys}


@pytest.fixture(scope="module")
def split():
    batch, rows = random_batch(SPEC, rows=ROWS), allocate(SPEC, ROWS)
    for m in SPEC.modalities:
        for part in layout(m):
            rows[f"{m.name}/{part}"] = np.asarray(getattr(batch.inputs[m.name], part))
    static = rows["static/values"]
    static[:, 1] = (static[:, 1] > 0) * rows["static/observed"][:, 1]  # yes or no
    rows["notes/values"] *= 7
    return Rows(rows)


@pytest.mark.parametrize("kind", disturb.KINDS)
def test_what_is_missing_stays_so_and_all_else_moves(split, kind):
    before, after = (s.read(np.arange(ROWS)) for s in (split, disturb.KINDS[kind](split, 0.5, 3)))
    assert before.keys() == after.keys()
    for key, x in before.items():
        assert after[key].dtype == x.dtype and after[key].shape == x.shape
        if not key.endswith("/values"):
            np.testing.assert_array_equal(after[key], x)
    seen = before["vitals/observed"]
    moved = after["vitals/values"] != before["vitals/values"]
    assert not moved[~seen].any() and moved[seen].all()
    assert not after["notes/values"][~before["notes/mask"]].any()
    assert after["scan/values"].max() <= 255


@pytest.mark.parametrize("kind", disturb.KINDS)
def test_a_row_is_the_same_in_any_batch_and_moves_with_the_size(split, kind):
    def values(size, indices, name="vitals"):
        rows = disturb.KINDS[kind](split, size, 3).read(indices)
        return rows[f"{name}/values"].astype(float)

    all_rows = np.arange(ROWS)
    np.testing.assert_array_equal(values(0.5, all_rows)[[7, 3]], values(0.5, [7, 3]))
    base = split.read(all_rows)["vitals/values"]
    one, two = (values(size, all_rows) - base for size in (0.25, 0.5))
    np.testing.assert_allclose(2 * one, two, atol=1e-5)
    np.testing.assert_array_equal(values(1e-12, all_rows), base)


def test_drift_is_one_step_per_feature_and_spares_yes_and_no(split):
    before, after = (s.read(np.arange(ROWS)) for s in (split, disturb.drift(split, 0.5, 3)))
    step = (after["vitals/values"] - before["vitals/values"])[before["vitals/observed"].all(-1)]
    np.testing.assert_allclose(np.abs(step), 0.5, atol=1e-6)
    assert np.ptp(step, axis=0).max() < 1e-6
    np.testing.assert_array_equal(after["static/values"][:, 1], before["static/values"][:, 1])
    assert (after["static/values"][:, 0] != before["static/values"][:, 0]).any()
    np.testing.assert_array_equal(after["icd/values"], before["icd/values"])
    mask = before["notes/mask"]
    gap = np.abs(after["notes/values"] - before["notes/values"])[mask].mean(0)
    np.testing.assert_allclose(gap, 0.5 * before["notes/values"][mask].std(0), rtol=1e-5)


def test_noise_has_its_size_and_exchanges_a_share_of_ids(split):
    before, after = (s.read(np.arange(ROWS)) for s in (split, disturb.noise(split, 0.5, 3)))
    seen = before["vitals/observed"]
    gap = (after["vitals/values"] - before["vitals/values"])[seen]
    assert abs(gap.std() - 0.5) < 0.03 and abs(gap.mean()) < 0.03
    mask = before["icd/mask"]
    other = (after["icd/values"] != before["icd/values"])[mask].mean()
    assert 0.5 * 0.7 < other < 0.5  # some draw the same id again
    assert not after["icd/values"][~mask].any()
    assert {*np.unique(after["icd/values"][mask])} <= {*np.unique(before["icd/values"][mask])}
