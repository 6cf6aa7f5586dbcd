"""What training varies on purpose: amounts, rows apart, what stays."""

import numpy as np
import pytest
from scipy.ndimage import shift

from m4.data import augment
from m4.data.batch import finish
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties

SPEC = DataSpec(
    (
        ModalitySpec("bands", "signal", (40, 8)),
        ModalitySpec("grey", "image", (1, 6, 5, 1), dtype="uint8"),
        ModalitySpec("film", "image", (2, 6, 5, 1)),
        ModalitySpec("static", "table", (2,)),
    ),
    (TaskSpec("death", "binary"),),
)
ALL = {
    "bands": dict.fromkeys(augment.SIGNAL, 0.3),
    "grey": dict.fromkeys(augment.IMAGE, 0.3),
    "film": dict.fromkeys(augment.IMAGE, 0.3),
}


def changed(amounts, batch, seed=0):
    apply = augment.augment(SPEC, amounts)
    inputs = {name: batch.inputs[name] for name in SPEC.modality_names}  # trees sort them
    return finish(SPEC, apply(batch.replace(inputs=inputs), np.random.default_rng(seed)))


@pytest.fixture
def batch():
    return properties.random_batch(SPEC, rows=12, keep=0.7)


def test_a_rows_fate_is_its_own(batch):
    whole = changed(ALL, batch)
    some = properties.take(batch, np.array([7, 2, 5]))
    part = changed(ALL, some)
    for name in ALL:
        one, two = whole.inputs[name], part.inputs[name]
        np.testing.assert_array_equal(one.values[[7, 2, 5]], two.values)
        np.testing.assert_array_equal(one.mask[[7, 2, 5]], two.mask)
    other = changed(ALL, batch, seed=1)
    assert (other.inputs["bands"].values != whole.inputs["bands"].values).any()


def test_what_is_absent_or_not_named_stays(batch):
    found = changed({"bands": ALL["bands"]}, batch)
    for name in ("grey", "film", "static"):
        np.testing.assert_array_equal(found.inputs[name].values, batch.inputs[name].values)
    for name, stream in changed(ALL, batch).inputs.items():
        np.testing.assert_array_equal(stream.present, batch.inputs[name].present)
        assert not stream.values[~stream.present].any()
        if name != "static":
            assert not stream.values[~stream.mask].any()
        assert stream.values.dtype == batch.inputs[name].values.dtype
    nothing = changed({"bands": dict.fromkeys(augment.SIGNAL, 0.0)}, batch)
    np.testing.assert_array_equal(nothing.inputs["bands"].values, batch.inputs["bands"].values)


def ramp(batch, length=20):
    """Every signal counts its positions."""
    stream = batch.inputs["bands"]
    mask = np.tile(np.arange(40) < length, (12, 1))
    values = (np.arange(40.0, dtype=np.float32)[:, None] + np.zeros(8, np.float32)) * mask[0][
        :, None
    ]
    full = stream.replace(values=np.tile(values, (12, 1, 1)), mask=mask, present=np.ones(12, bool))
    return batch.replace(inputs={**batch.inputs, "bands": full})


def test_speed_changes_length_and_nothing_else(batch):
    stream = changed({"bands": {"speed": 0.5}}, ramp(batch)).inputs["bands"]
    length = stream.mask.sum(1)
    assert length.min() >= 12 and length.max() <= 33 and len({*length}) > 4
    for values, n in zip(stream.values, length, strict=True):
        slope = np.diff(values[:n, 0])
        inner = slope[: int(n * 0.9)]
        np.testing.assert_allclose(inner, 20 / n, rtol=1e-4)
    long = changed({"bands": {"speed": 1.0}}, ramp(batch, 38)).inputs["bands"]
    cut = long.mask.all(1)
    assert cut.any() and (long.values[cut][:, 0, 0] >= 0).all()
    assert (long.values[cut][:, 0, 0] > 1).any()  # the middle stays


def test_slide_is_a_shift_of_channels(batch):
    given = batch.inputs["bands"].replace(
        values=np.random.default_rng(0).standard_normal((12, 40, 8), np.float32),
        mask=np.ones((12, 40), bool),
        present=np.ones(12, bool),
    )
    batch = batch.replace(inputs={**batch.inputs, "bands": given})
    draws = augment.Draws(np.random.default_rng(0), np.asarray(batch.uid))
    draws.even()  # of the stretch
    moved = 2 * draws.even()
    found = changed({"bands": {"slide": 2.0}}, batch).inputs["bands"].values
    for one, old, by in zip(found, given.values, moved, strict=True):
        expected = shift(old, (0, -by), order=1, mode="nearest")
        np.testing.assert_allclose(one, expected, atol=1e-4)


def test_masks_take_at_most_their_share(batch):
    stream = changed({"bands": {"mask": 0.5}}, ramp(batch, 40)).inputs["bands"]
    lost = (stream.values[:, 1:] == 0).all(2).sum(1)
    assert 0 < lost.max() <= 21 and lost.min() < 10
    image = batch.inputs["film"].replace(
        values=np.ones((12, 2, 6, 5, 1), np.float32),
        mask=np.ones((12, 2), bool),
        present=np.ones(12, bool),
    )
    full = batch.replace(inputs={**batch.inputs, "film": image})
    lost = changed({"film": {"mask": 0.6}}, full).inputs["film"].values == 0
    assert 0 < lost[:, 0].mean() < 0.36
    np.testing.assert_array_equal(lost[:, 0], lost[:, 1])


@pytest.mark.parametrize(
    ("amounts", "said"),
    [
        ({"ecg": {}}, "ecg: no such modality; bands, grey, film, static"),
        ({"static": {"noise": 1}}, "static: is of kind table; signal and image can be varied"),
        ({"bands": 0.5}, r"bands=0.5: must be a dict"),
        ({"bands": {"zoom": 1}}, "bands.zoom: of signals it is speed, warp"),
        ({"grey": {"shift": -1}}, "grey.shift=-1: must be a number from 0 to 1000"),
        ({"bands": {"mask": 2}}, "bands.mask=2: must be a number from 0 to 1"),
        ({"bands": {"mask": True}}, "bands.mask=True: must be"),
        ({"bands": {"noise": float("nan")}}, "bands.noise=nan: must be"),
    ],
)
def test_refusals(amounts, said):
    with pytest.raises(ValueError, match=said):
        augment.check(SPEC, amounts)
