"""M4oE's release (tangzhengxu2001/m4oe): four images, three tasks, ViTs as in transformers 4."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from m4.errors import ConfigError
from m4.methods.m4oe.released import ReleasedM4oE
from m4.nn.torch_table import (
    LAST,
    LEAD,
    SWAP,
    Codec,
    Entry,
    Layout,
    chain,
    linears,
    norms,
    shape,
    stack,
)

VITS = ("vit_cc", "vit_mlo", "vit_2dcc", "vit_2dmlo")
HEADS = (1, 2, 7)  # of the tasks in order
IGNORED = {
    "cls_token": "left over from an ancestor, never read",
    "pos_embed": "left over from an ancestor, never read",
    "patch_embed[1-4].*": "left over from an ancestor, never read",
    "blocks.0.mlp.task_embedding[4-7]": "embedding of a task that there is not",
    "head3.*": "a head that is never called",
    "vit_*.pooler.*": "pooler that is never called",
}


def layout(method: ReleasedM4oE) -> Layout:
    """Every tensor. The block of the MToE is not public: its names are those of timm's block."""
    images = {m.shape for m in method.data.modalities if m.kind == "image"}
    plain = dataclasses.replace(method.moe, num_experts=16, hidden=128, dtype=None)
    fits = len(method.data.modalities) == 4 and len(images) == 1 and len(method.data.tasks) == 3
    if not fits or any(m.kind != "image" for m in method.data.modalities):
        raise ConfigError(
            "the release has four images of one shape and three tasks; configured:"
            f" {', '.join(method.data.modality_names)} with tasks"
            f" {', '.join(method.data.task_names)}"
        )
    if plain != ReleasedM4oE.moe:
        raise ConfigError("method.moe: of the release only num_experts, hidden and dtype can vary")
    width, (image,) = method.width, images
    entries = [
        *_vits(method, "tokens/vit_" + "x".join(map(str, image)), image[-1]),
        *_block("mtoe", ["blocks.0"], width, method.moe.num_experts, slots=3),
        stack("task", [f"blocks.0.mlp.task_embedding{t}" for t in (1, 2, 3)]),
        *norms("norm", ["norm1", "norm2", "norm3"]),
        *linears("project", [f"proj{head}" for head in HEADS]),
    ]
    for i in range(method.depth):
        own = [f"blocks{m}.{i}" for m in (1, 2, 3, 4)]
        entries += _block(f"msoe_{i}", own, width, method.modality_experts)
    for i in range(method.fusion_depth):
        entries += _block(f"fusion_{i}", [f"blocks5.{i}"], width, method.fusion_experts)
    for dim in {task.dim for task in method.data.tasks}:
        tasks = zip(method.data.tasks, HEADS, strict=True)
        entries += linears(f"heads/dim_{dim}", [f"head{h}" for t, h in tasks if t.dim == dim])
    return Layout(entries, ignored=IGNORED)


def _block(
    path: str, blocks: Sequence[str], width: int, num: int, *, slots: int = 1
) -> list[Entry]:
    """A block per stack: attention, then a soft mixture."""
    at, each = f"{path}_experts", [f"{b}.mlp.experts.{e}" for b in blocks for e in range(num)]
    phi = shape((width, num, slots), (width, num * slots))
    return [
        *norms(f"{path}_attention/norm", [f"{b}.norm1" for b in blocks]),
        *linears(f"{path}_attention/attention/qkv", [f"{b}.attn.qkv" for b in blocks]),
        *linears(f"{path}_attention/attention/out", [f"{b}.attn.proj" for b in blocks]),
        *norms(f"{path}_norm", [f"{b}.norm2" for b in blocks]),
        stack(f"{at}/gate_phi", [f"{b}.mlp.phi" for b in blocks], phi),
        stack(f"{at}/gate_scale", [f"{b}.mlp.scale" for b in blocks], LAST),
        stack(f"{at}/w1", [f"{e}.fc1.weight" for e in each]),
        stack(f"{at}/b1", [f"{e}.fc1.bias" for e in each]),
        stack(f"{at}/w2", [f"{e}.fc2.weight" for e in each], SWAP),
        stack(f"{at}/b2", [f"{e}.fc2.bias" for e in each]),
    ]


def _vits(method: ReleasedM4oE, path: str, channels: int) -> list[Entry]:
    """The images' transformers, stacked."""
    patch, width = method.patch, method.width
    first = Codec(LEAD.back, LEAD.forth)
    pixels = chain(
        Codec(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
        shape((patch, patch, channels, width), (patch * patch * channels, width)),
    )
    each = lambda name: [f"{vit}.{name}" for vit in VITS]  # noqa: E731
    embed = "embeddings.patch_embeddings.projection"
    entries = [
        stack(f"{path}/class_token", each("embeddings.cls_token"), first, first),
        stack(f"{path}/position", each("embeddings.position_embeddings"), first),
        stack(f"{path}/patch/kernel", each(f"{embed}.weight"), pixels),
        stack(f"{path}/patch/bias", each(f"{embed}.bias")),
        *norms(f"{path}/norm", each("layernorm")),
    ]
    for i in range(method.vit_depth):
        at = f"encoder.layer.{i}"
        entries += [
            *norms(f"{path}/attention_{i}/norm", each(f"{at}.layernorm_before")),
            _qkv(f"{path}/attention_{i}/attention/qkv/kernel", at, "weight").then(SWAP),
            _qkv(f"{path}/attention_{i}/attention/qkv/bias", at, "bias"),
            *linears(f"{path}/attention_{i}/attention/out", each(f"{at}.attention.output.dense")),
            *norms(f"{path}/mlp_{i}/norm", each(f"{at}.layernorm_after")),
            *linears(f"{path}/mlp_{i}/mlp/up", each(f"{at}.intermediate.dense")),
            *linears(f"{path}/mlp_{i}/mlp/down", each(f"{at}.output.dense")),
        ]
    return entries


def _qkv(path: str, at: str, part: str) -> Entry:
    """Query, key and value of every image, one behind the other, [S, 3 D, ...]."""
    names = [
        f"{v}.{at}.attention.attention.{n}.{part}" for v in VITS for n in ("query", "key", "value")
    ]
    return Entry(
        path,
        tuple(names),
        lambda xs: np.stack([np.concatenate(xs[s : s + 3]) for s in range(0, len(xs), 3)]),
        lambda x: [piece for row in x for piece in np.split(row, 3)],
    )
