"""ViT (`m4.nn.encoders.vit`) with weights from a file, named as in transformers or timm.

Letters: N images, h, w, c image, T tokens, D width.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.nn import vit_names
from m4.nn.encoders.vit import ViT
from m4.nn.pretrained import wrapper
from m4.types import Array

UNUSED = r"(classifier|head|head_dist|pre_logits|decoder|lm_head)\.|(embeddings\.)?mask_token$"


@dataclasses.dataclass(frozen=True)
class ViTSizes:
    """What the weights say about the architecture; `num_heads` they cannot tell."""

    width: int
    hidden: int
    depth: int
    num_heads: int
    patch: int
    grid: int  # patches along a side of the image
    channels: int
    pooler: int  # 1 if the file has one
    epsilon: float = 1e-12

    scale = "half"  # of pixels, where nothing else is said

    @property
    def poolings(self) -> tuple[str, ...]:
        """What it can give, the usual first."""
        return "first", "mean", "tokens", *("pooler",) * self.pooler

    def module(self, dropout: float, name: str) -> nn.Module:
        """The encoder."""
        return ViTReader(self, dropout, name=name)

    def count(self, height: int, width: int) -> int:
        """Tokens of an image. Raises ValueError for a size that has no positions."""
        side = self.grid * self.patch
        if (height, width) != (side, side):
            raise ValueError(
                f"images of {height} x {width}, but its positions are for {side} x {side}"
                f" ({self.grid} x {self.grid} patches of {self.patch}): build the data at that size"
            )
        return 1 + self.grid**2


class ViTReader(nn.Module):
    """Images -> what each pooling keeps of them."""

    sizes: ViTSizes
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image_Nhwc: Array, *, train: bool) -> dict[str, Array]:
        """By pooling, [N, tokens, D]: the class token (`first`) and patches are normalised."""
        s = self.sizes
        kinds = {"dropout": self.dropout, "epsilon": s.epsilon, "hidden": s.hidden}
        vit = ViT(s.width, s.depth, s.num_heads, s.patch, **kinds, name="vit")
        x_NTD = vit(image_Nhwc[:, None], train=train)[:, 0]
        found = {"tokens": x_NTD, "first": x_NTD[:, :1]}
        found["mean"] = x_NTD[:, 1:].mean(1, keepdims=True)
        if s.pooler:
            found["pooler"] = jnp.tanh(nn.Dense(s.width, name="pooler")(x_NTD[:, :1]))
        return found


def load(
    file: str, tensors: Mapping[str, np.ndarray], num_heads: int = 0
) -> tuple[ViTSizes, wrapper.Readers] | None:
    """Sizes, and what reads every parameter of `ViTReader` by path; None if it is no ViT.

    A prefix such as `vit.` is understood, heads are passed over. Raises ValueError with every
    tensor that is missing, surplus, of another shape or not finite.
    """

    def ours(names: vit_names.Names) -> bool:
        ends = (names.class_token, f"{names.block}.0.{names.qkv[0]}.weight")
        return all(any(name.endswith(end) for name in tensors) for end in ends)

    names = next((n for n in vit_names.LIBRARIES if ours(n)), None)
    if names is None:
        return None
    tensors = wrapper.without(tensors, names.class_token, UNUSED)
    sizes = _sizes(file, names, tensors, num_heads)
    paths, shapes = tables(sizes, names)
    wrapper.check(file, tensors, shapes)
    return sizes, wrapper.as_readers(paths, tensors, _join)


def _sizes(file, names, tensors, num_heads) -> ViTSizes:
    try:
        width, channels, patch, _ = tensors[f"{names.patch}.weight"].shape
        _, tokens, _ = tensors[names.position].shape
    except (KeyError, ValueError):
        wanted = f"{names.patch}.weight [D, c, p, p] and {names.position} [1, 1 + patches, D]"
        raise ValueError(f"{file}: no ViT, it lacks {wanted}") from None
    grid = math.isqrt(max(tokens - 1, 0))
    if grid < 1 or grid**2 + 1 != tokens:
        raise ValueError(f"{file}: {names.position} has {tokens} rows, expected 1 + a square")
    depth, hidden, heads = wrapper.sizes_of(file, tensors, names.block, names.up, width, num_heads)
    pooler = int("pooler.dense.weight" in tensors)
    return ViTSizes(width, hidden, depth, heads, patch, grid, channels, pooler, names.epsilon)


def tables(s: ViTSizes, names: vit_names.Names = vit_names.SAVED) -> wrapper.Tables:
    """Names in the file and shapes there."""
    inner = vit_names.modules(names, s.depth, s.width, s.hidden)
    found: vit_names.Modules = {f"vit/{path}": module for path, module in inner.items()}
    found["vit/patch"] = (names.patch,), (s.width, s.channels, s.patch, s.patch)
    if s.pooler:
        found["pooler"] = ("pooler.dense",), (s.width, s.width)
    arrays = {
        "vit/class_token": (names.class_token, (1, 1, s.width)),
        "vit/position": (names.position, (1, 1 + s.grid**2, s.width)),
    }
    return wrapper.tables(found, arrays)


def _join(path: str, parts: list[np.ndarray]) -> np.ndarray:
    """One m4 array: stacks lead with a 1; a patch is p, q, c."""
    if path == "vit/class_token":
        return parts[0][0]
    if path == "vit/position":
        return parts[0]
    if path == "vit/patch/kernel":
        return rearrange(parts[0], "d c p q -> 1 (p q c) d")
    x = wrapper.join(path, parts)
    return x if path.startswith("pooler") else x[None]
