"""M4oE's release (tangzhengxu2001/m4oe): four images, three tasks, ViTs as in transformers 4."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m4.errors import ConfigError
from m4.methods.m4oe.released import ReleasedM4oE, two_logits
from m4.nn import torch_table as table
from m4.nn import vit_names
from m4.nn.torch_table import Entry, Layout

# Of the images and of the tasks, in the release's order; what in a name says which it is.
VITS = {"cc": "vit_cc", "mlo": "vit_mlo", "2dcc": "vit_2dcc", "2dmlo": "vit_2dmlo"}
HEADS = {"density": 1, "risk": 2, "birads": 7}
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
    own = [two_logits(task) for task in method.data.tasks]
    heads, said_tasks = _by_name([task.name for task in own], HEADS, _task_role)
    vits, said_images = _by_name(method.data.modality_names, VITS, _image_role)
    slots = [list(HEADS.values()).index(head) for head in heads]
    blocks = [list(VITS.values()).index(vit) + 1 for vit in vits]
    entries = [
        *_vits(method, vits, "tokens/vit_" + "x".join(map(str, image)), image[-1]),
        *_block("mtoe", ["blocks.0"], width, method.moe.num_experts, slots),
        table.stack("task", [f"blocks.0.mlp.task_embedding{t + 1}" for t in slots]),
        *table.norms("norm", [f"norm{t + 1}" for t in slots]),
        *table.linears("project", [f"proj{head}" for head in heads]),
    ]
    for i in range(method.depth):
        msoe = [f"blocks{m}.{i}" for m in blocks]
        entries += _block(f"msoe_{i}", msoe, width, method.modality_experts)
    for i in range(method.fusion_depth):
        entries += _block(f"fusion_{i}", [f"blocks5.{i}"], width, method.fusion_experts)
    for dim in {task.dim for task in own}:
        names = [f"head{h}" for task, h in zip(own, heads, strict=True) if task.dim == dim]
        entries += table.linears(f"heads/dim_{dim}", names)
    return Layout(entries, ignored=IGNORED, notes=(said_tasks, said_images))


def _by_name(names: Sequence[str], parts: Mapping[str, Any], role) -> tuple[list[Any], str]:
    """The part of every name, and what is to be said; all by place where a name says nothing."""
    roles = [role(name) for name in names]
    known = {*roles} == {*parts}
    found = [parts[role] for role in roles] if known else list(parts.values())
    pairs = ", ".join(f"{name} is {part}" for name, part in zip(names, found, strict=True))
    return found, f"by {'name' if known else 'place'}: {pairs}"


def _task_role(name: str) -> str | None:
    return next((role for role in HEADS if name.startswith(role)), None)


def _image_role(name: str) -> str:
    """Of 'ffdm_cc', '2dcc', 'cview_mlo': the view, and whether it is the flat image."""
    flat = "2d" if re.search("2d|ffdm", name) else ""
    return flat + name[-3:].lstrip("_d")


def _block(
    path: str, blocks: Sequence[str], width: int, num: int, slots: Sequence[int] = (0,)
) -> list[Entry]:
    """A block per stack: attention, then a soft mixture; ours are the release's `slots`."""
    at, each = f"{path}_experts", [f"{b}.mlp.experts.{e}" for b in blocks for e in range(num)]
    flat = table.shape((width, num, len(slots)), (width, num * len(slots)))
    phi = table.chain(table.take(slots, 2), flat)
    return [
        *table.norms(f"{path}_attention/norm", [f"{b}.norm1" for b in blocks]),
        *table.linears(f"{path}_attention/attention/qkv", [f"{b}.attn.qkv" for b in blocks]),
        *table.linears(f"{path}_attention/attention/out", [f"{b}.attn.proj" for b in blocks]),
        *table.norms(f"{path}_norm", [f"{b}.norm2" for b in blocks]),
        table.stack(f"{at}/gate_phi", [f"{b}.mlp.phi" for b in blocks], phi),
        table.stack(f"{at}/gate_scale", [f"{b}.mlp.scale" for b in blocks], table.LAST),
        table.stack(f"{at}/w1", [f"{e}.fc1.weight" for e in each]),
        table.stack(f"{at}/b1", [f"{e}.fc1.bias" for e in each]),
        table.stack(f"{at}/w2", [f"{e}.fc2.weight" for e in each], table.SWAP),
        table.stack(f"{at}/b2", [f"{e}.fc2.bias" for e in each]),
    ]


def _vits(method: ReleasedM4oE, vits: Sequence[str], path: str, channels: int) -> list[Entry]:
    """The images' transformers, stacked."""
    patch, width = method.patch, method.width
    first = table.Codec(table.LEAD.back, table.LEAD.forth)
    pixels = table.chain(
        table.Codec(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
        table.shape((patch, patch, channels, width), (patch * patch * channels, width)),
    )
    each = lambda name: [f"{vit}.{name}" for vit in vits]  # noqa: E731
    names = vit_names.SAVED
    entries = [
        table.stack(f"{path}/class_token", each(names.class_token), first, first),
        table.stack(f"{path}/position", each(names.position), first),
        table.stack(f"{path}/patch/kernel", each(f"{names.patch}.weight"), pixels),
        table.stack(f"{path}/patch/bias", each(f"{names.patch}.bias")),
    ]
    for place, (parts, shape) in vit_names.modules(names, method.vit_depth, width, 0).items():
        if len(parts) > 1:
            entries += _side_by_side(f"{path}/{place}", vits, parts)
        else:
            module = table.norms if len(shape) == 1 else table.linears
            entries += module(f"{path}/{place}", each(*parts))
    return entries


def _side_by_side(path: str, vits: Sequence[str], parts: Sequence[str]) -> list[Entry]:
    """Query, key and value of every image, one behind the other, [S, 3 D, ...]."""

    def entry(leaf, theirs, *codecs):
        return Entry(
            f"{path}/{leaf}",
            tuple(f"{vit}.{part}.{theirs}" for vit in vits for part in parts),
            lambda xs: np.stack([np.concatenate(xs[s : s + 3]) for s in range(0, len(xs), 3)]),
            lambda x: [piece for row in x for piece in np.split(row, 3)],
        ).then(*codecs)

    return [entry("kernel", "weight", table.SWAP), entry("bias", "bias")]
