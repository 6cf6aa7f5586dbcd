"""Convolutions from scratch in front of a method: the laws of every method, lengths, own heads."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import fft
from scipy.ndimage import correlate1d
from scipy.special import log_softmax

from m4.errors import ConfigError
from m4.nn import front
from m4.nn.encoders import convolution
from m4.run.method import make_method
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Stream
from tests import properties
from tests.train import methods

SPEC = DataSpec(
    (
        ModalitySpec("sound", "signal", (600, 1)),  # in frames of ten samples
        ModalitySpec("bands", "signal", (9, 3)),
        ModalitySpec("xray", "image", (2, 5, 4, 1), dtype="uint8"),
        ModalitySpec("static", "table", (2,)),
    ),
    (TaskSpec("death", "binary"), TaskSpec("ward", "multiclass", dim=3)),
)
CONV = {"width": 8, "depth": 2, "dropout": 0.1, "alone": 0.5, "frames": "power", "centre": 0.5}
FUSEMOE = {"name": "fusemoe", "moe": {"num_experts": 4}, "width": 8, "depth": 1, "aux_weights": {}}


def stream(x, length):
    """A signal [n, c] at the front of `length` positions."""
    values: Any = np.full((1, length, x.shape[1]), 1e6, np.float32)
    values[0, : len(x)] = x
    mask: Any = np.arange(length)[None] < len(x)
    return Stream(values, mask, mask[:, 0])


@pytest.fixture(scope="module")
def probe():
    return properties.probe(make_method(FUSEMOE, SPEC, conv=CONV))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
def test_laws(probe, check):
    check(probe)


@pytest.mark.parametrize("frames", get_args(convolution.Frames))
@pytest.mark.parametrize("length", [40, 1000])
def test_padding_changes_nothing(length, frames):
    """Whatever stands behind a signal, and however long the batch is, in or without frames."""
    x = np.random.default_rng(0).standard_normal((length - 7, 2), np.float32)
    encoder: Any = convolution.SignalEncoder(6, 3, frames=frames, centre=0.5)
    params = encoder.init(jax.random.key(0), stream(x, length), train=False)
    found = encoder.apply(params, stream(x, length), train=False)
    size = -(-length // convolution.FRAMES)
    longer = stream(x, length + (0 if size > 1 else 8))
    longer.values[0, len(x) :] = -7
    np.testing.assert_allclose(encoder.apply(params, longer, train=False), found, atol=1e-6)
    assert np.abs(found).max() > 0.01


def test_a_convolution_is_scipys():
    """Convolution, norm, GELU and pooling of a whole signal, by another library."""
    x = np.random.default_rng(1).standard_normal((2, 8, 3), np.float32)
    net: Any = convolution.Convolutions(1, 4, 1)
    params = net.init(jax.random.key(0), x, np.ones((2, 8), bool), train=False)["params"]
    found, mask = net.apply({"params": params}, x, np.ones((2, 8), bool), train=False)
    kernel = np.asarray(params["conv_0"]["kernel"])
    y = np.zeros((2, 8, 4))
    for row, i, o in np.ndindex(2, 3, 4):
        y[row, :, o] += correlate1d(x[row, :, i], kernel[:, i, o], mode="constant")
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    np.testing.assert_allclose(found, y.reshape(2, 4, 2, 4).max(2), atol=1e-5)
    assert mask.shape == (2, 4) and mask.all()


def test_frames_are_twice_their_step():
    x = jnp.arange(7.0).reshape(1, 7, 1)
    frames, mask = convolution.framed(x, jnp.arange(7)[None] < 3, 2)
    assert frames[0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 0], [6, 0, 0, 0]]
    assert mask[0].tolist() == [True, True, False, False]


def test_power_of_frames_is_scipys():
    """Log power under a window, a channel's of mean 0 and deviation 1; silence is zeros."""
    x = np.random.default_rng(2).standard_normal((2, 48, 2), np.float32)
    x[1] = 0
    frames, mask = convolution.framed(jnp.asarray(x), np.arange(48)[None] < [[30], [48]], 4)
    found = np.asarray(convolution.log_power(frames, mask, 2))
    assert found.shape == (2, 12, 10) and not found[0, 8:].any() and not found[1].any()
    own = np.stack([x[0, k : k + 8] for k in range(0, 32, 4)])
    window = np.sin(np.pi * (np.arange(8) + 0.5) / 8) ** 2
    power = np.abs(fft.rfft(own * window[:, None], axis=1)).transpose(0, 2, 1) ** 2
    level = np.log(power + convolution.QUIETEST * power.mean((0, 2), keepdims=True))
    expected = (level - level.mean((0, 2), keepdims=True)) / level.std((0, 2), keepdims=True)
    np.testing.assert_allclose(found[0, :8], expected.reshape(8, 10), atol=1e-4)


def test_a_quiet_channel_is_heard_beside_a_loud_one():
    x = np.random.default_rng(4).standard_normal((1, 1000, 2), np.float32)
    frames = [convolution.framed(x * [1, k], np.ones((1, 1000), bool), 16) for k in (1, 1e-3)]
    even, uneven = (convolution.log_power(*each, 2) for each in frames)
    np.testing.assert_allclose(even, uneven, atol=1e-4)


def test_devices_hear_their_own_rows_alone():
    rows = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((16, 63, 32), jnp.float32, sharding=rows)
    mask = jax.ShapeDtypeStruct((16, 63), bool, sharding=rows)
    run = jax.jit(lambda x, mask: convolution.log_power(x, mask, 2), out_shardings=rows)
    text = run.lower(x, mask).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


def test_the_unit_of_power_does_not_matter_and_a_centred_channel_has_no_level():
    x = np.random.default_rng(3).standard_normal((900, 1), np.float32)
    encoder: Any = convolution.SignalEncoder(6, 2, frames="power")
    params = encoder.init(jax.random.key(0), stream(x, 900), train=False)
    for k in (100, 1e18, 1e-9, 1e-17):  # volts, teslas
        found = [encoder.apply(params, stream(unit * x, 900), train=False) for unit in (1, k)]
        np.testing.assert_allclose(*found, atol=1e-3)
    bands = x[:40].reshape(10, 4)
    for centre, same in ((1.0, True), (0.5, False)):
        whole: Any = convolution.SignalEncoder(6, 2, centre=centre)
        params = whole.init(jax.random.key(0), stream(bands, 12), train=False)
        moved = bands + np.float32([1, 5, 2, 0])
        one, two = (whole.apply(params, stream(x, 12), train=False) for x in (bands, moved))
        assert (np.abs(one - two).max() < 1e-5) == same


def test_own_heads_learn_from_rows_that_have_the_modality():
    method: Any = make_method(FUSEMOE, SPEC, conv=CONV)
    batch = properties.random_batch(SPEC, seed=1, keep=0.6)
    params = methods.params(method, batch)

    @jax.jit
    def losses(params):
        out = method.apply({"params": params}, batch, train=False)
        return out, [method.clone(alone=alone).loss(out, batch, 0)[0] for alone in (0.5, 0.0)]

    out, (whole, without) = losses(params)
    own = 0.0
    for name in ("sound", "bands", "xray"):
        rows = np.asarray(batch.weight) * np.asarray(batch.inputs[name].present)
        for task in ("death", "ward"):
            target = batch.targets[task]
            logits = np.asarray(out.extra[f"alone/{name}/{task}"], np.float64)
            y = np.asarray(target.value).reshape(-1).astype(int)
            if task == "death":
                logits = np.concatenate([0 * logits, logits], 1)
            each = -log_softmax(logits, 1)[np.arange(len(y)), y]
            weight = rows * np.asarray(target.mask)
            own += float((each * weight).sum() / weight.sum()) / 3
    np.testing.assert_allclose(whole - without, 0.5 * own, rtol=1e-5)


def test_it_stands_before_any_method_and_leaves_the_rest():
    for name, sizes in (("m3h", {"width": 4, "task_width": 3}), ("flexcare", {"width": 8})):
        method = make_method({"name": name} | sizes, SPEC, conv=CONV)
        kinds = {m.name: m.kind for m in front.bare(method).data.modalities}
        kept = {"static": "table"}
        assert kinds == dict.fromkeys(("sound", "bands", "xray"), "vectors") | kept
        batch = properties.random_batch(SPEC)
        rngs = {name: jax.random.key(0) for name in ("params", "dropout", "gate")}
        out, _ = jax.eval_shape(
            lambda m=method, b=batch, r=rngs: m.init_with_output(r, b, train=True)
        )
        assert out.logits["ward"].shape == (len(batch.uid), 3)


def test_refusals():
    tables = DataSpec(SPEC.modalities[3:], SPEC.tasks)
    with pytest.raises(ValueError, match="frames='sums'; choose one of"):
        convolution.SignalEncoder(4, 1, **{"frames": "sums"}).init(
            jax.random.key(0), stream(np.ones((3, 1), np.float32), 4), train=False
        )
    with pytest.raises(ConfigError, match=r"^conv.width: no modality is an image or signal: stat"):
        make_method(FUSEMOE, tables, conv=CONV)
