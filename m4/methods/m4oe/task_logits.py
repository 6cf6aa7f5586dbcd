"""From fused task vectors to logits: affine heads, and maps of segmentation tasks.

Modules are made in the scope of the method that calls.

Letters: B rows, P tasks, M modalities, T tokens of a modality, N patches, y, x their places, D
width.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.methods.m4oe.grid import TokenGrid
from m4.methods.m4oe.mixtures import CombineNorm, TaskTokens
from m4.nn.layers import StackedHeads
from m4.nn.segmentation import SegHead
from m4.specs import DataSpec, TaskSpec
from m4.types import Array


def task_logits(
    data: DataSpec,
    f_BPD: Array,
    tokens: TaskTokens,
    grid: TokenGrid,
    *,
    norm: CombineNorm,
    patch: int,
    widths: tuple[int, ...],
) -> dict[str, Array]:
    """Task name -> [B, dim], or of a segmentation task a map [B, h, w, dim].

    A map is made of the patch tokens of the task's MToE branch, of the ViT's own, and of the fused
    vector. Raises ValueError for a segmentation task without an image.
    """
    plain = [p for p, task in enumerate(data.tasks) if task.kind != "segmentation"]
    logits = {}
    if plain:
        heads = StackedHeads([data.tasks[p] for p in plain], name="heads")
        logits = heads(f_BPD[:, jnp.array(plain)])
    for p, task in enumerate(data.tasks):
        if task.kind == "segmentation":
            h_BTD = tokens.of_task(p, norm, grid.x.shape[1])[:, pictured(data, task)]
            logits[task.name] = _map(data, task, h_BTD, grid, f_BPD[:, p], patch, widths)
    return {task.name: logits[task.name] for task in data.tasks}


def _map(data, task, h_BTD, grid, f_BD, patch, widths) -> Array:
    m, dim = pictured(data, task), grid.x.shape[-1]
    _, height, width, _ = data.modalities[m].shape
    h_BTD = h_BTD + nn.Dense(dim, name=f"skip_{task.name}")(grid.x[:, m])
    context_BD = nn.Dense(dim, name=f"context_{task.name}")(f_BD)
    x_BND = h_BTD[:, 1 : 1 + height * width // patch**2] + context_BD[:, None]
    x_ByxD = rearrange(x_BND, "b (y x) d -> b y x d", x=width // patch)
    return SegHead(task.dim, widths, name=f"segment_{task.name}")(x_ByxD, size=(height, width))


def pictured(data: DataSpec, task: TaskSpec) -> int:
    """The modality that a task segments: the first image it needs, else the first of all."""
    names = task.needs or data.modality_names
    images = [n for n in names if data.modality(n).kind == "image"]
    if not images:
        raise ValueError(f"task {task.name}: nothing to segment, no modality is an image")
    return data.modality_names.index(images[0])
