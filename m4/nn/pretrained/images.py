"""ViT or ResNet with weights from a safetensors file, as a reader of image modalities.

`WithImages` puts it in front of any method, which then has vectors instead of images.

Letters: B rows, S modalities of one shape, V views, h, w, c image, N = B S V, T tokens of a view,
K = V T vectors, D width.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat

from m4.nn import vit_names
from m4.nn.front import as_vectors
from m4.nn.pretrained import resnet, vit_file, wrapper
from m4.nn.pretrained.resnet import ResNetSizes
from m4.nn.pretrained.vit_file import ViTSizes
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Stream

Sizes = ViTSizes | ResNetSizes
SCALES = {  # of bytes, as shares of 255: mean and deviation per channel
    "unit": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@functools.lru_cache(maxsize=2)
def load(file: str, num_heads: int = 0) -> tuple[Sizes, wrapper.Readers]:
    """Sizes, and what reads every parameter of their module by path.

    Raises ValueError for a file that is neither ViT nor ResNet, or in which something is amiss;
    OSError for one that cannot be read.
    """
    tensors = wrapper.read(file)
    found = vit_file.load(file, tensors, num_heads) or resnet.load(file, tensors)
    if found is None:
        names = [f"{n.class_token} and {n.block}.0.{n.qkv[0]}.weight" for n in vit_names.LIBRARIES]
        lacks = f"{', or '.join(names)}; no ResNet, it lacks {resnet.FIRST}"
        raise ValueError(f"{file}: no ViT, it lacks {lacks}")
    return found


class WithImages(wrapper.Reader):
    """One encoder turns every image modality of `data` into vectors.

    One vector per view (or per patch or place of it with pooling='tokens'); their times are 0.
    """

    scale: str = "half"

    kind = "image"

    def vectors(self, streams: Mapping[str, Stream], *, train: bool) -> dict[str, Stream]:
        """By name of the modality."""
        model, found = self.sizes.module(self.dropout, self.part), {}
        options = {"channels": self.sizes.channels, "scale": self.scale, "pooling": self.pooling}
        for names in alike(self.data):
            some = read(model, [streams[name] for name in names], **options, train=train)
            found |= zip(names, some, strict=True)
        return found

    def readers(self) -> wrapper.Readers:
        """Of the encoder."""
        return load(self.file, getattr(self.sizes, "num_heads", 0))[1]


def read(
    model: Callable[..., dict[str, Array]],
    streams: Sequence[Stream],
    *,
    channels: int,
    scale: str,
    pooling: str,
    train: bool,
) -> list[Stream]:
    """Images of equal shape as vectors; `model` is the call of an encoder."""
    x_BSVhwc, mask_BSV = pixels(streams, channels=channels, scale=scale)
    x_NTD = model(rearrange(x_BSVhwc, "b s v h w c -> (b s v) h w c"), train=train)[pooling]
    rows, stacks, views = mask_BSV.shape
    x_BSKD = rearrange(x_NTD, "(b s v) t d -> b s (v t) d", b=rows, s=stacks, v=views)
    mask_BSK = repeat(mask_BSV, "b s v -> b s (v t)", t=x_NTD.shape[1])
    return [
        Stream(x_BSKD[:, i], mask_BSK[:, i], stream.present, jnp.zeros(mask_BSK[:, i].shape))
        for i, stream in enumerate(streams)
    ]


def pixels(streams: Sequence[Stream], *, channels: int, scale: str) -> tuple[Array, Array]:
    """Images [B, S, V, h, w, channels], zeros where there is none, and bool[B, S, V].

    Bytes are scaled, floats stay as they are; grey is repeated for every channel.
    """
    mask_BSV = jnp.stack([s.mask & s.present[:, None] for s in streams], 1)
    values = jnp.stack([s.values for s in streams], 1)
    values = jnp.broadcast_to(values, (*values.shape[:-1], channels))
    if values.dtype == jnp.uint8:
        mean, deviation = (jnp.array(x, jnp.float32) for x in SCALES[scale])
        values = (values.astype(jnp.float32) / 255 - mean) / deviation
    return jnp.where(mask_BSV[..., None, None, None], values, 0).astype(jnp.float32), mask_BSV


def with_images(
    make: Callable[[DataSpec], nn.Module],
    data: DataSpec,
    *,
    file: str,
    tuning: wrapper.Tuning = "frozen",
    pooling: str = "auto",
    scale: str = "auto",
    num_heads: int = 0,
    dropout: float = 0.0,
) -> WithImages:
    """The method that `make` makes for a schema, with an encoder of images in front of it.

    'auto' is what the encoder was made for: pooling 'first' and scale 'half' of a ViT, 'mean' and
    'imagenet' of a ResNet. Raises ValueError for a schema without images or with such as the
    encoder cannot read, or for a file that is no encoder; OSError for one that cannot be read.
    """
    sizes, _ = load(file, num_heads)
    pooling = sizes.poolings[0] if pooling == "auto" else pooling
    scale = sizes.scale if scale == "auto" else scale
    if tuning not in get_args(wrapper.Tuning) or scale not in SCALES:
        raise ValueError(f"tuning={tuning!r}, scale={scale!r}")
    if pooling not in sizes.poolings:
        raise ValueError(
            f"{file}: has nothing for pooling={pooling!r}, but for {', '.join(sizes.poolings)}"
        )
    if scale == "imagenet" and sizes.channels != 3:
        raise ValueError(f"{file}: scale 'imagenet' is of 3 channels, it has {sizes.channels}")
    if not alike(data):
        raise ValueError(f"no modality is an image: {', '.join(data.modality_names)}")
    vectors = as_vectors(data, ("image",), lambda m: _shape(m, file, sizes, pooling))
    method = make(vectors)
    return WithImages(method, data, file, sizes, tuning, pooling, dropout, scale)


def _shape(m: ModalitySpec, file: str, sizes: Sizes, pooling: str) -> tuple[int, int]:
    """Of a modality's vectors."""
    views, height, width, channels = m.shape
    if channels not in (1, sizes.channels):
        raise ValueError(f"modality {m.name}: {channels} channels, but {file} has {sizes.channels}")
    try:
        count = sizes.count(height, width)
    except ValueError as error:
        raise ValueError(f"{file}: modality {m.name}: {error}") from None
    return views * (count if pooling == "tokens" else 1), sizes.width


def alike(data: DataSpec) -> list[list[str]]:
    """Image modalities of equal shape and type, which one call of the encoder reads."""
    groups: dict[tuple, list[str]] = {}
    for m in data.modalities:
        if m.kind == "image":
            groups.setdefault((m.shape, m.dtype), []).append(m.name)
    return list(groups.values())
