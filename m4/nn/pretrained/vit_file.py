"""ViT (`m4.nn.encoders.vit`) with weights from a file, named as in transformers or timm.

Letters: N images, h, w, c image, T tokens, D width.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.nn.encoders.vit import ViT
from m4.nn.pretrained import wrapper
from m4.types import Array

HEAD = 64  # width of a head, where nothing else is said: true of ViT-Ti to ViT-L
UNUSED = r"(classifier|head|head_dist|pre_logits|decoder|lm_head)\.|(embeddings\.)?mask_token$"


@dataclasses.dataclass(frozen=True)
class Names:
    """What a library calls the parts of a ViT; those of a block follow `block.<i>.`."""

    class_token: str
    position: str
    patch: str
    norm: str
    block: str
    qkv: tuple[str, ...]
    out: str
    norms: tuple[str, str]
    up: str
    down: str
    epsilon: float  # of its layer norms


SAVED = Names(  # transformers, as it saves files
    class_token="embeddings.cls_token",
    position="embeddings.position_embeddings",
    patch="embeddings.patch_embeddings.projection",
    norm="layernorm",
    block="encoder.layer",
    qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    out="attention.output.dense",
    norms=("layernorm_before", "layernorm_after"),
    up="intermediate.dense",
    down="output.dense",
    epsilon=1e-12,
)
MEMORY = dataclasses.replace(  # its state dict since release 5
    SAVED,
    block="layers",
    qkv=tuple(f"attention.{part}_proj" for part in "qkv"),
    out="attention.o_proj",
    up="mlp.fc1",
    down="mlp.fc2",
)
TIMM = Names(
    class_token="cls_token",
    position="pos_embed",
    patch="patch_embed.proj",
    norm="norm",
    block="blocks",
    qkv=("attn.qkv",),
    out="attn.proj",
    norms=("norm1", "norm2"),
    up="mlp.fc1",
    down="mlp.fc2",
    epsilon=1e-6,
)
LIBRARIES = (SAVED, MEMORY, TIMM)


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

    def ours(names: Names) -> bool:
        ends = (names.class_token, f"{names.block}.0.{names.qkv[0]}.weight")
        return all(any(name.endswith(end) for name in tensors) for end in ends)

    names = next((n for n in LIBRARIES if ours(n)), None)
    if names is None:
        return None
    tensors = wrapper.without(tensors, names.class_token, UNUSED)
    sizes = _sizes(file, names, tensors, num_heads)
    wrapper.check(file, tensors, expected(sizes, names))
    return sizes, wrapper.as_readers(_paths(names, sizes), tensors, _join)


def _sizes(file, names, tensors, num_heads) -> ViTSizes:
    try:
        width, channels, patch, _ = tensors[f"{names.patch}.weight"].shape
        _, tokens, _ = tensors[names.position].shape
    except (KeyError, ValueError):
        wanted = f"{names.patch}.weight [D, c, p, p] and {names.position} [1, 1 + patches, D]"
        raise ValueError(f"{file}: no ViT, it lacks {wanted}") from None
    grid, heads = math.isqrt(max(tokens - 1, 0)), num_heads or max(1, width // HEAD)
    if grid < 1 or grid**2 + 1 != tokens:
        raise ValueError(f"{file}: {names.position} has {tokens} rows, expected 1 + a square")
    if width % heads:
        raise ValueError(f"{file}: {heads} heads cannot split a width of {width}; set num_heads")
    blocks = {m[1] for n in tensors if (m := re.match(rf"{re.escape(names.block)}\.(\d+)\.", n))}
    up = tensors.get(f"{names.block}.0.{names.up}.weight", np.zeros(4 * width))
    hidden = (*up.shape, 0)[0]
    pooler = int("pooler.dense.weight" in tensors)
    return ViTSizes(width, hidden, len(blocks), heads, patch, grid, channels, pooler, names.epsilon)


def _modules(names: Names, sizes: ViTSizes) -> dict[str, tuple[str, ...]]:
    """Path of every module with weight and bias, and its names in the file."""
    found: dict[str, tuple[str, ...]]
    found = {"vit/patch": (names.patch,), "vit/norm": (names.norm,)}
    for i in range(sizes.depth):
        at = f"{names.block}.{i}."
        found |= {
            f"vit/attention_{i}/norm": (at + names.norms[0],),
            f"vit/attention_{i}/attention/qkv": tuple(at + part for part in names.qkv),
            f"vit/attention_{i}/attention/out": (at + names.out,),
            f"vit/mlp_{i}/norm": (at + names.norms[1],),
            f"vit/mlp_{i}/mlp/up": (at + names.up,),
            f"vit/mlp_{i}/mlp/down": (at + names.down,),
        }
    return found | ({"pooler": ("pooler.dense",)} if sizes.pooler else {})


def _paths(names: Names, sizes: ViTSizes) -> dict[str, tuple[str, ...]]:
    """Names in the file of what makes a parameter, by its path."""
    paths: dict[str, tuple[str, ...]]
    paths = {"vit/class_token": (names.class_token,), "vit/position": (names.position,)}
    for path, modules in _modules(names, sizes).items():
        leaf = "scale" if path.endswith("norm") else "kernel"
        paths[f"{path}/{leaf}"] = tuple(f"{module}.weight" for module in modules)
        paths[f"{path}/bias"] = tuple(f"{module}.bias" for module in modules)
    return paths


def expected(sizes: ViTSizes, names: Names = SAVED) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by its name in the file."""
    width, hidden = sizes.width, sizes.hidden
    shapes: dict[str, tuple[int, ...]]
    shapes = {names.class_token: (1, 1, width), names.position: (1, 1 + sizes.grid**2, width)}
    for path, modules in _modules(names, sizes).items():
        inputs, outputs = (width,), 3 * width // len(modules) if path.endswith("qkv") else width
        if path.endswith(("up", "down")):
            inputs, outputs = ((width,), hidden) if path.endswith("up") else ((hidden,), width)
        if path.endswith("patch"):
            inputs = (sizes.channels, sizes.patch, sizes.patch)
        for module in modules:
            shapes[f"{module}.weight"] = (outputs, *(() if path.endswith("norm") else inputs))
            shapes[f"{module}.bias"] = (outputs,)
    return shapes


def _join(path: str, parts: list[np.ndarray]) -> np.ndarray:
    """One m4 array: stacks lead with a 1; a patch is p, q, c; query, key, value side by side."""
    if path == "vit/class_token":
        return parts[0][0]
    if path == "vit/position":
        return parts[0]
    if path == "vit/patch/kernel":
        return rearrange(parts[0], "d c p q -> 1 (p q c) d")
    x = np.concatenate([x.T for x in parts], -1)
    return x if path.startswith("pooler") else x[None]
