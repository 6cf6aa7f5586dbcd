"""Images and signals by convolutional networks that are trained with the method.

`WithConvolutions` puts one in front of any method for every image and signal, which the method
then has as vectors: one of each view of an image, one of a signal. Absent ones are zeros.

Letters: B rows, V views, h, w, c image, T samples, F frames, S samples of a frame, D width, K parts
that are averaged.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import exact
from m4.nn.encoders.vit import clean_images
from m4.nn.front import Front, as_vectors
from m4.nn.layers import Dropout, TaskHeads, masked_mean
from m4.resolve import check_fields
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Batch, Mean, Outputs, Stream

KINDS = ("image", "signal")
FRAMES = 64  # a longer signal is first cut into frames, so that it has at most so many
LEVEL = -1e4  # below whatever a layer norm lets through
QUIETEST = 1e-4  # of the mean power of a channel's frames, added to each
Frames = Literal["samples", "power"]  # how frames of a long signal are read


class Convolutions(nn.Module):
    """`depth` times: convolution, layer norm, GELU, dropout and max-pooling by 2, where it can.

    `dims` is 1 for a signal, 2 for an image.
    """

    dims: int
    width: int
    depth: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, mask: Array, *, train: bool) -> tuple[Array, Array]:
        """[B, *places, c] and bool[B, *places] -> the same of fewer places, [.., D]; 0 outside."""
        for i in range(self.depth):
            side = 5 if self.dims == 1 else 3
            x = nn.Conv(self.width, (side,) * self.dims, name=f"conv_{i}")(x)
            x = nn.gelu(nn.LayerNorm(name=f"norm_{i}")(x))
            x = Dropout(self.dropout / 2, deterministic=not train, name=f"drop_{i}")(x)
            window = tuple(min(2, size) for size in x.shape[1:-1])
            x = jnp.where(mask[..., None], x, LEVEL)
            x = nn.max_pool(x, window, window, padding="SAME")
            mask = nn.max_pool(mask[..., None].astype(x.dtype), window, window, "SAME")[..., 0] > 0
            x = jnp.where(mask[..., None], x, 0)
        return x, mask


class SignalEncoder(nn.Module):
    """A signal -> one vector: thirds of its length averaged, and the largest of each channel.

    Of every channel, or frequency, `centre` times its mean over the signal is taken away: what a
    microphone or a voice adds to all of it.
    """

    width: int
    depth: int
    dropout: float = 0.0
    frames: Frames = "samples"
    centre: float = 0.0

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Array:
        """[B, T, c] -> [B, D]. Raises ValueError for unknown `frames`."""
        check_fields(self)
        mask_BT = stream.mask & stream.present[:, None]
        x_BTc = jnp.where(mask_BT[..., None], stream.values, 0).astype(jnp.float32)
        size = math.ceil(x_BTc.shape[1] / FRAMES)
        if size > 1:
            channels = x_BTc.shape[-1]
            x_BTc, mask_BT = framed(x_BTc, mask_BT, size)
            if self.frames == "power":
                x_BTc = log_power(x_BTc, mask_BT, channels)
        if self.centre:
            x_BTc -= self.centre * masked_mean(x_BTc, mask_BT, dim=1)[:, None]
            x_BTc = jnp.where(mask_BT[..., None], x_BTc, 0)
        if size > 1:
            x_BTc = nn.Dense(self.width, name="frames")(x_BTc)
        net = Convolutions(1, self.width, self.depth, self.dropout, name="net")
        x_BTD, mask_BT = net(x_BTc, mask_BT, train=train)
        place_BT = (jnp.cumsum(mask_BT, 1) - 0.5) / jnp.maximum(mask_BT.sum(1, keepdims=True), 1)
        parts = [mask_BT & (jnp.abs(place_BT - at) < 0.25) for at in (1 / 6, 1 / 2, 5 / 6)]
        means = [masked_mean(x_BTD, part, dim=1) for part in parts]
        return Pooled(self.width, self.dropout, name="pooled")(
            means, jnp.where(mask_BT[..., None], x_BTD, LEVEL).max(1), mask_BT.any(1), train=train
        )


class ImageEncoder(nn.Module):
    """A view -> one vector: its quarters averaged, and the largest of each channel."""

    width: int
    depth: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Array:
        """[B, V, h, w, c] -> [B, V, D]."""
        x_BVhwc, mask_BV = (x[:, 0] for x in clean_images([stream]))
        rows, views = mask_BV.shape
        x = rearrange(x_BVhwc, "b v h w c -> (b v) h w c")
        net = Convolutions(2, self.width, self.depth, self.dropout, name="net")
        x, _ = net(x, jnp.ones(x.shape[:-1], bool), train=train)
        high, wide = (math.ceil(size / 2) for size in x.shape[1:3])
        quarters = [
            x[:, y][:, :, z].mean((1, 2))
            for y in (slice(high), slice(-high, None))
            for z in (slice(wide), slice(-wide, None))
        ]
        pooled = Pooled(self.width, self.dropout, name="pooled")
        out = pooled(quarters, x.max((1, 2)), mask_BV.reshape(-1), train=train)
        return rearrange(out, "(b v) d -> b v d", b=rows, v=views)


class Pooled(nn.Module):
    """An affine map of what was pooled, zeros where there was nothing."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, means: list[Array], largest: Array, there_B: Array, *, train: bool) -> Array:
        """K times [B, D], [B, D] and bool[B] -> [B, D]."""
        x = jnp.where(there_B[:, None], jnp.concatenate([*means, largest], -1), 0)
        x = Dropout(self.dropout, deterministic=not train, name="drop")(x)
        return jnp.where(there_B[:, None], nn.gelu(nn.Dense(self.width, name="out")(x)), 0)


def framed(x_BTc: Array, mask_BT: Array, size: int) -> tuple[Array, Array]:
    """Frames of twice `size` samples, `size` apart, [B, F, 2 size c], and bool[B, F]."""
    x, mask = (
        jnp.pad(a, [(0, 0), (0, -a.shape[1] % size), *[(0, 0)] * (a.ndim - 2)])
        for a in (x_BTc, mask_BT)
    )
    x_BFS = rearrange(x, "b (f s) c -> b f (s c)", s=size)
    later_BFS = jnp.pad(x_BFS[:, 1:], ((0, 0), (0, 1), (0, 0)))
    return jnp.concatenate([x_BFS, later_BFS], -1), rearrange(mask, "b (f s) -> b f s", s=size).any(
        -1
    )


def log_power(x_BFS: Array, mask_BF: Array, channels: int) -> Array:
    """Log power of the frequencies of frames, [B, F, (S / 2c + 1) c]; 0 outside the mask.

    Of the c channels, whose samples take turns in a frame; each has mean 0 and deviation 1 over a
    signal, so that its unit does not matter. The transform is two products: XLA's own would gather
    the rows of all devices on each.
    """
    x_BFcS = rearrange(x_BFS, "b f (s c) -> b f c s", c=channels)
    largest = jnp.abs(x_BFcS).max((1, 3), keepdims=True)
    x_BFcS = x_BFcS / jnp.where(largest > 0, largest, 1)
    place_S = np.arange(x_BFcS.shape[-1])
    angle_SK = 2 * np.pi / len(place_S) * np.outer(place_S, np.arange(len(place_S) // 2 + 1))
    window_S1 = np.sin(np.pi * (place_S + 0.5) / len(place_S))[:, None] ** 2
    with exact():
        cosine, sine = (
            x_BFcS @ (window_S1 * wave(angle_SK)).astype(np.float32) for wave in (np.cos, np.sin)
        )
    power_BFcK = jnp.square(cosine) + jnp.square(sine)

    def mean_Bc(x_BFcK: Array) -> Array:
        return masked_mean(x_BFcK.mean(-1), mask_BF, dim=1)[:, None, :, None]

    quiet = QUIETEST * mean_Bc(power_BFcK)
    x_BFcK = jnp.log(power_BFcK + jnp.where(quiet > 0, quiet, 1))  # of silence 0
    x_BFcK -= mean_Bc(x_BFcK)
    x_BFcK /= jnp.sqrt(mean_Bc(jnp.square(x_BFcK)) + 1e-6)
    x_BFK = rearrange(x_BFcK, "b f c k -> b f (c k)")
    return jnp.where(mask_BF[..., None], x_BFK, 0)


class WithConvolutions(Front):
    """`method` behind an encoder of each image and signal, of `reads` alone.

    With `alone` above 0 each encoder also has heads of its own, whose task losses, with this
    weight, reach it even where others already know the answer; they predict nothing.
    """

    reads: tuple[str, ...]
    width: int
    depth: int
    dropout: float
    alone: float
    frames: Frames = "samples"
    centre: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool, **inputs) -> Outputs:
        """As the method's; with `alone` and in training also the encoders' own logits."""
        found = self.encode(batch.inputs, train=train)
        out = self.method(batch.replace(inputs={**batch.inputs, **found}), train=train, **inputs)
        if not self.alone:
            return out
        extra = dict(out.extra)
        for name, stream in found.items():
            x_BD = masked_mean(stream.values, stream.mask, dim=1)
            heads = TaskHeads(self.data.tasks, name=f"alone_{name}")
            own = heads(x_BD)
            extra |= {f"alone/{name}/{task}": logits for task, logits in own.items()}
        return out.replace(extra=extra)

    def encode(self, streams: Mapping[str, Stream], *, train: bool) -> dict[str, Stream]:
        """What it reads, as vectors whose times are 0."""
        found = {}
        for name in self.reads:
            stream, m = streams[name], self.data.modality(name)
            sizes, own = (self.width, self.depth, self.dropout), f"encoder_{name}"
            if m.kind == "signal":
                encoder = SignalEncoder(*sizes, self.frames, self.centre, name=own)
            else:
                encoder = ImageEncoder(*sizes, name=own)
            x = encoder(stream, train=train)
            x_BKD = x[:, None] if x.ndim == 2 else x
            mask_BV = stream.mask & stream.present[:, None]
            mask_BK = mask_BV.any(-1, keepdims=True) if m.kind == "signal" else mask_BV
            found[name] = Stream(x_BKD, mask_BK, stream.present, jnp.zeros(mask_BK.shape))
        return found

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """As the method's, and what it says of each encoder's own logits where that is present."""
        total, terms = self.method.loss(out, batch, step)
        for name in self.reads if self.alone else ():
            own = {task: out.extra[f"alone/{name}/{task}"] for task in self.data.task_names}
            nothing = dict.fromkeys(out.aux_losses, jnp.zeros(()))
            some = batch.replace(weight=batch.weight * batch.inputs[name].present)
            guess = out.replace(logits=own, aux_losses=nothing)
            total += self.alone / len(self.reads) * self.method.loss(guess, some, step)[0]
        return total, terms


def with_convolutions(
    make: Callable[[DataSpec], nn.Module],
    data: DataSpec,
    *,
    width: int,
    depth: int = 3,
    dropout: float = 0.0,
    alone: float = 0.0,
    frames: Frames = "samples",
    centre: float = 0.0,
) -> WithConvolutions:
    """The method that `make` makes for a schema, with encoders in front of it.

    Raises ValueError for a schema without images and signals.
    """
    reads = tuple(m.name for m in data.modalities if m.kind in KINDS)
    if not reads:
        raise ValueError(f"no modality is an image or signal: {', '.join(data.modality_names)}")

    def shape(m: ModalitySpec) -> tuple[int, int]:
        return (m.shape[0] if m.kind == "image" else 1), width

    method = make(as_vectors(data, KINDS, shape))
    return WithConvolutions(method, data, reads, width, depth, dropout, alone, frames, centre)
