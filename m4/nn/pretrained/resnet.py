"""ResNet (He et al. 2016) with weights from a safetensors file, named as in torchvision.

Basic blocks (ResNet-18, -34) and bottlenecks (-50, -101, -152, wide ones) whose 3 x 3 convolution
has the stride, as in torchvision and timm. Batch normalisation is in its inference form: a layer's
running statistics are folded into one scale and one bias per channel. Those are parameters, so
'tuned' trains them; statistics are never updated, and no image sees another one of the batch. That
departs from torchvision's training mode and is equal to its evaluation mode.

Letters: N images, h, w, c image, C channels, T tokens (places of the last feature map).
"""

import dataclasses
import re
from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from einops import rearrange

from m4.nn.pretrained import wrapper
from m4.types import Array

EPSILON = 1e-5  # of batch normalisation
STATISTICS = ("weight", "bias", "running_mean", "running_var")
FIRST = "layer1.0.conv1.weight"
UNUSED = r"(fc|head|classifier)\.|.*num_batches_tracked$"
he = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


@dataclasses.dataclass(frozen=True)
class ResNetSizes:
    """What the weights say about the architecture."""

    channels: int  # of images
    stem: int
    blocks: tuple[int, ...]  # per stage
    inner: tuple[int, ...]  # channels inside the blocks of a stage
    outer: tuple[int, ...]  # and behind them
    bottleneck: int  # 1 for three convolutions a block, 0 for two

    scale = "imagenet"  # of pixels, where nothing else is said
    poolings = ("mean", "tokens")  # what it can give, the usual first

    @property
    def width(self) -> int:
        """Channels of the last feature map."""
        return self.outer[-1]

    def module(self, dropout: float, name: str) -> nn.Module:
        """The encoder; a ResNet has no dropout."""
        del dropout
        return ResNet(self, name=name)

    def count(self, height: int, width: int) -> int:
        """Tokens of an image: every one of five strides halves it, rounded up."""
        return -(-height // 32) * -(-width // 32)


class ResNet(nn.Module):
    """Images -> places of the last feature map, and their mean."""

    sizes: ResNetSizes

    @nn.compact
    def __call__(self, image_Nhwc: Array, *, train: bool) -> dict[str, Array]:
        """By pooling, [N, tokens, C]; `train` changes nothing."""
        del train
        s = self.sizes
        x = nn.relu(ConvAffine(s.stem, 7, 2, name="stem")(image_Nhwc))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType] (Flax types it as text)
        for k, (blocks, inner, outer) in enumerate(zip(s.blocks, s.inner, s.outer, strict=True)):
            for i in range(blocks):
                stride = 2 if k and not i else 1
                x = Block(inner, outer, stride, s.bottleneck, name=f"block_{k}_{i}")(x)
        return {"mean": x.mean((1, 2))[:, None], "tokens": rearrange(x, "n h w c -> n (h w) c")}


class ConvAffine(nn.Module):
    """Convolution without bias, padded as in PyTorch, then a scale and a bias per channel."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, h, w, c] -> [N, ceil(h / stride), ceil(w / stride), features]."""
        pad, shape = self.size // 2, ((self.size,) * 2, (self.stride,) * 2)
        conv = nn.Conv(self.features, *shape, pad, use_bias=False, kernel_init=he, name="conv")
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        return conv(x) * scale + self.param("bias", nn.initializers.zeros, (self.features,))


class Block(nn.Module):
    """relu(x + convolutions(x)); where shapes differ, x is projected."""

    inner: int
    outer: int
    stride: int
    bottleneck: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, h, w, c] -> [N, ceil(h / stride), ceil(w / stride), outer]."""
        plan = _plan(self.inner, self.outer, self.stride, self.bottleneck)
        y = x
        for j, (features, size, stride) in enumerate(plan):
            y = ConvAffine(features, size, stride, name=f"part_{j}")(y if j == 0 else nn.relu(y))
        if self.stride != 1 or x.shape[-1] != self.outer:
            x = ConvAffine(self.outer, 1, self.stride, name="project")(x)
        return nn.relu(x + y)


def _plan(inner, outer, stride, bottleneck) -> tuple[tuple[int, int, int], ...]:
    """Features, size and stride of a block's convolutions."""
    if bottleneck:
        return (inner, 1, 1), (inner, 3, stride), (outer, 1, 1)
    return (inner, 3, stride), (outer, 3, 1)


def load(
    file: str, tensors: Mapping[str, np.ndarray]
) -> tuple[ResNetSizes, wrapper.Readers] | None:
    """Sizes, and what reads every parameter of `ResNet` by path; None if it is no ResNet.

    A prefix such as `module.` is understood, the classifier is passed over. Raises ValueError
    with every tensor that is missing, surplus, of another shape or not finite.
    """
    if not any(name.endswith(FIRST) for name in tensors):
        return None
    tensors = wrapper.without(tensors, FIRST, UNUSED)
    sizes = _sizes(file, tensors)
    wrapper.check(file, tensors, expected(sizes))
    low = [n for n in tensors if n.endswith("running_var") and (tensors[n] < 0).any()]
    if low:
        raise ValueError(f"{file}: {', '.join(low)}: a variance is negative")
    paths = {}
    for path, (conv, norm, _) in _modules(sizes).items():
        weight, bias, mean, var = (f"{norm}.{part}" for part in STATISTICS)
        paths[f"{path}/conv/kernel"] = (f"{conv}.weight",)
        paths[f"{path}/scale"] = weight, var
        paths[f"{path}/bias"] = bias, mean, weight, var
    return sizes, wrapper.as_readers(paths, tensors, _join)


def expected(sizes: ResNetSizes) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by its name in the file."""
    shapes = {}
    for conv, norm, kernel in _modules(sizes).values():
        shapes[f"{conv}.weight"] = kernel
        shapes |= {f"{norm}.{part}": kernel[:1] for part in STATISTICS}
    return shapes


def _modules(s: ResNetSizes) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Path of every `ConvAffine`, the names of its two parts in the file, and its kernel."""
    found = {"stem": ("conv1", "bn1", (s.stem, s.channels, 7, 7))}
    inputs = s.stem
    for k, (blocks, inner, outer) in enumerate(zip(s.blocks, s.inner, s.outer, strict=True)):
        for i in range(blocks):
            at, path, stride = f"layer{k + 1}.{i}", f"block_{k}_{i}", 2 if k and not i else 1
            if stride != 1 or inputs != outer:
                names = f"{at}.downsample.0", f"{at}.downsample.1"
                found[f"{path}/project"] = (*names, (outer, inputs, 1, 1))
            for j, (features, size, _) in enumerate(_plan(inner, outer, stride, s.bottleneck)):
                names = f"{at}.conv{j + 1}", f"{at}.bn{j + 1}"
                found[f"{path}/part_{j}"] = (*names, (features, inputs, size, size))
                inputs = features
    return found


def _sizes(file, tensors) -> ResNetSizes:
    bottleneck = int("layer1.0.conv3.weight" in tensors)
    last = 3 if bottleneck else 2
    ends = {k: (f"layer{k}.0.conv1.weight", f"layer{k}.0.conv{last}.weight") for k in range(1, 5)}
    wanted = ["conv1.weight", *(name for pair in ends.values() for name in pair)]
    lacks = [n for n in wanted if n not in tensors or tensors[n].ndim != 4]
    if lacks:
        raise ValueError(f"{file}: no ResNet, it lacks {', '.join(lacks)} of 4 dimensions")
    blocks = [
        {m[1] for n in tensors if (m := re.match(rf"layer{k}\.(\d+)\.", n))} for k in range(1, 5)
    ]
    stem, channels = tensors["conv1.weight"].shape[:2]
    inner, outer = (tuple(len(tensors[pair[end]]) for pair in ends.values()) for end in (0, 1))
    return ResNetSizes(channels, stem, tuple(map(len, blocks)), inner, outer, bottleneck)


def _join(path: str, parts: list[np.ndarray]) -> np.ndarray:
    """One m4 array; statistics are folded in double precision."""
    if path.endswith("kernel"):
        return rearrange(parts[0], "o i h w -> h w i o")
    *rest, weight, var = (x.astype(np.float64) for x in parts)
    scale = weight / np.sqrt(var + EPSILON)
    return (rest[0] - rest[1] * scale if rest else scale).astype(np.float32)
