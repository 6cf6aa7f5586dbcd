"""What training varies on purpose, anew for every row that is drawn: `train.augment`.

    train.augment = {"spectrogram": {"speed": 0.2, "mask": 0.2}, "pixels": {"shift": 1}}

By modality, of kinds signal and image (floats, or bytes whose middle is grey); every amount is the
most that is done, and 0 if it isn't named. Series and tables are clinical: what a change of them
means is not for a library to say.

| amount | signal | image |
|---|---|---|
| `speed` | length times exp(u), u up to so much; of what gets too long the middle stays | - |
| `zoom` | - | size times exp(u) |
| `shift` | - | points along height and width |
| `warp` | channels, which must be in order, stretched by exp(u) | - |
| `slide` | channels moved by so many | - |
| `tilt` | smooth curves over the channels of this deviation: another microphone | - |
| `gain` | values times exp(normal of this deviation) | the same |
| `level` | a normal number of this deviation is added | the same |
| `noise` | normal noise, of a deviation up to so much | the same |
| `mask` | a run of up to this share of positions is 0, one of channels, too | a rectangle |

`warp` is VTLP (Jaitly and Hinton 2013), `mask` SpecAugment (Park et al. 2019).
A row's draws do not depend on the other rows of its batch or on how many processes share it.

Letters: B rows, T positions, F channels, V views, h, w, c image.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from m4.data.regularise import Transform
from m4.specs import DataSpec, ModalitySpec
from m4.types import Batch, Stream

SIGNAL = ("speed", "warp", "slide", "tilt", "gain", "level", "noise", "mask")
IMAGE = ("zoom", "shift", "gain", "level", "noise", "mask")
AMOUNTS = {"signal": SIGNAL, "image": IMAGE}
MOST = {"speed": 1.0, "zoom": 1.0, "warp": 1.0, "mask": 1.0}


def check(spec: DataSpec, amounts: Mapping[str, Any]) -> None:
    """Raises ValueError, in words that follow 'train.augment.', for what is none of these."""
    for name, own in amounts.items():
        if name not in spec.modality_names:
            raise ValueError(f"{name}: no such modality; {', '.join(spec.modality_names)}")
        m = spec.modality(name)
        if m.kind not in AMOUNTS or m.dtype not in ("float32", "uint8"):
            raise ValueError(f"{name}: is of kind {m.kind}; {' and '.join(AMOUNTS)} can be varied")
        if not isinstance(own, Mapping):
            raise ValueError(f"{name}={own!r}: must be a dict, as {{'noise': 0.1}}")
        for key, value in own.items():
            if key not in AMOUNTS[m.kind]:
                raise ValueError(f"{name}.{key}: of {m.kind}s it is {', '.join(AMOUNTS[m.kind])}")
            right = isinstance(value, int | float) and not isinstance(value, bool)
            if not right or not 0 <= value <= MOST.get(key, 1e3):
                raise ValueError(
                    f"{name}.{key}={value!r}: must be a number from 0 to {MOST.get(key, 1e3):g}"
                )


class Draws:
    """Random numbers of every row, f32[B, ...], by the generator's next word and row numbers."""

    def __init__(self, rng: np.random.Generator, uid_B: np.ndarray):
        word = int(rng.integers(2**63))
        self._rngs = [np.random.default_rng((word, int(uid) + 1)) for uid in uid_B]

    def share(self, *shape: int) -> np.ndarray:
        """From 0 to 1."""
        return np.stack([rng.random(shape, np.float32) for rng in self._rngs])

    def even(self) -> np.ndarray:
        """One of each row, from -1 to 1."""
        return 2 * self.share() - 1

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal."""
        return np.stack([rng.standard_normal(shape, np.float32) for rng in self._rngs])


def augment(spec: DataSpec, amounts: Mapping[str, Mapping[str, float]]) -> Transform:
    """Varies the modalities that are named. Raises ValueError as `check` does."""
    check(spec, amounts)

    def apply(batch: Batch, rng: np.random.Generator) -> Batch:
        inputs = dict(batch.inputs)
        for name in sorted(amounts):
            m, stream = spec.modality(name), inputs[name]
            change = _signal if m.kind == "signal" else _image
            values, mask = change(m, stream, Draws(rng, np.asarray(batch.uid)), amounts[name])
            keep = mask.reshape(*mask.shape, *[1] * (values.ndim - 2))
            inputs[name] = stream.replace(values=np.where(keep, values, 0), mask=mask)
            if m.dtype == "uint8":
                whole = np.where(keep, np.rint(values * 127.5 + 127.5).clip(0, 255), 0)
                inputs[name] = inputs[name].replace(values=whole.astype(np.uint8))
        return batch.replace(inputs=inputs)

    return apply


def _signal(
    m: ModalitySpec, stream: Stream, draws: Draws, amounts: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Values f32[B, T, F] and bool[B, T]."""
    amount = _getter(amounts)
    x_BTF, mask_BT = np.asarray(stream.values, np.float32), np.asarray(stream.mask)
    rows, length, width = x_BTF.shape
    if amount("speed"):
        x_BTF, mask_BT = _stretched(x_BTF, mask_BT, np.exp(draws.even() * amount("speed")))
    if amount("warp") or amount("slide"):
        stretch_B = np.exp(draws.even() * amount("warp"))
        middle, moved_B = (width - 1) / 2, draws.even() * amount("slide")
        place_BF = (np.arange(width) - middle) * stretch_B[:, None] + middle + moved_B[:, None]
        x_BTF = _at(x_BTF.swapaxes(1, 2), place_BF).swapaxes(1, 2)
    if amount("tilt"):
        at_F = np.linspace(-1, 1, width)
        curves_3F = np.stack([at_F, np.cos(2 * np.pi * at_F), np.sin(2 * np.pi * at_F)])
        curve_BF = amount("tilt") * draws.normal(3) @ curves_3F
        x_BTF = x_BTF + curve_BF[:, None].astype(np.float32)
    x_BTF = _levels(x_BTF, draws, amount)
    if amount("mask"):
        lost_BT = _run(draws, np.asarray(mask_BT.sum(1)), amount("mask"), length)
        lost_BF = _run(draws, np.full(rows, width), amount("mask") * (width > 1), width)
        x_BTF = np.where(lost_BT[..., None] | lost_BF[:, None], np.float32(0), x_BTF)
    return x_BTF, mask_BT


def _image(
    m: ModalitySpec, stream: Stream, draws: Draws, amounts: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Values f32[B, V, h, w, c], and the mask as it was; all views of a row alike."""
    amount = _getter(amounts)
    x = np.asarray(stream.values, np.float32)
    x = x / 127.5 - 1 if m.dtype == "uint8" else x
    rows, views, height, width, channels = x.shape
    for axis, size in ((2, height), (3, width)):
        zoom_B = np.exp(draws.even() * amount("zoom"))
        moved_B, middle = draws.even() * amount("shift"), (size - 1) / 2
        if amount("zoom") or amount("shift"):
            place_Bn = (np.arange(size) - middle) / zoom_B[:, None] + middle + moved_B[:, None]
            front = np.moveaxis(x, axis, 1)
            flat = _at(front.reshape(rows, size, -1), place_Bn).reshape(front.shape)
            x = np.moveaxis(flat, 1, axis)
    x = _levels(x, draws, amount)
    if amount("mask"):
        lost_Bh = _run(draws, np.full(rows, height), amount("mask"), height)
        lost_Bw = _run(draws, np.full(rows, width), amount("mask"), width)
        lost_Bhw = lost_Bh[:, :, None] & lost_Bw[:, None]
        x = np.where(lost_Bhw[:, None, ..., None], np.float32(0), x)
    return x, np.asarray(stream.mask)


def _levels(x: np.ndarray, draws: Draws, amount: Callable[[str], float]) -> np.ndarray:
    """Gain, level and noise, each of a whole row."""
    one = [1] * (x.ndim - 1)
    if amount("gain"):
        x = x * np.exp(amount("gain") * draws.normal(*one))
    if amount("level"):
        x = x + amount("level") * draws.normal(*one)
    if amount("noise"):
        x = x + amount("noise") * draws.share(*one) * draws.normal(*x.shape[1:])
    return x


def _stretched(
    x_BTF: np.ndarray, mask_BT: np.ndarray, stretch_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signals made longer or shorter, and their masks; the middle of what gets too long."""
    length, old_B = x_BTF.shape[1], mask_BT.sum(1)
    new_B = np.rint(old_B * stretch_B).astype(int).clip(min=1)
    first_B = np.maximum(new_B - length, 0) // 2
    place_BT = (np.arange(length) + first_B[:, None]) * (old_B / new_B)[:, None]
    place_BT = np.clip(place_BT, 0, np.maximum(old_B - 1, 0)[:, None])
    return _at(x_BTF, place_BT), (np.arange(length) < new_B[:, None]) & (old_B > 0)[:, None]


def _at(x_BNc: np.ndarray, place_Bn: np.ndarray) -> np.ndarray:
    """Values at fractional places along dimension 1, the ends beyond them, f32[B, n, c]."""
    last = x_BNc.shape[1] - 1
    low_Bn = np.floor(place_Bn)
    part = (place_Bn - low_Bn)[..., None].astype(np.float32)
    low_Bn = low_Bn.astype(int)
    row = np.arange(len(x_BNc))[:, None]
    one, two = x_BNc[row, low_Bn.clip(0, last)], x_BNc[row, (low_Bn + 1).clip(0, last)]
    return one + part * (two - one)


def _run(draws: Draws, length_B: np.ndarray, share: float, size: int) -> np.ndarray:
    """bool[B, size]: a run of up to `share` of the first `length_B` positions."""
    run_B = draws.share() * share * length_B
    start_B = draws.share() * (length_B - run_B)
    at = np.arange(size) + 0.5
    return (at >= start_B[:, None]) & (at < (start_B + run_B)[:, None])


def _getter(amounts: Mapping[str, float]) -> Callable[[str], float]:
    return lambda name: amounts.get(name, 0.0)
