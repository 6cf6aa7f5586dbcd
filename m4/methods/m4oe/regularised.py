"""What only the paper and we have: maps, and the information of the MToE as a loss.

Letters: B rows, P tasks, M modalities, T tokens of a modality, N patches, y, x their places, D
width.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.methods.m4oe.grid import TokenGrid, modality_of_token
from m4.methods.m4oe.information import Information, as_losses, regulariser
from m4.methods.m4oe.mixtures import CombineNorm, Mixtures, TaskTokens
from m4.nn.layers import StackedHeads
from m4.nn.segmentation import SegHead
from m4.resolve import check_fields
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Outputs


class RegularisedMixtures(Mixtures):
    """All steps but the loss; experts read tokens of length 1 in the paper, as they are in ours."""

    segment_widths: tuple[int, ...] = (384, 192, 96, 48)  # channels per doubling of a map
    combine_norm: CombineNorm = "expert_slot"
    information: Information = "cmi_joint"
    aggregate: Literal["row", "batch"] = "row"  # information of a row, or of the mean row
    weighting: Literal["uniform", "uncertainty"] = "uniform"  # of tasks

    epsilon: ClassVar[float] = 1e-12  # of the ViTs' layer norms

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task; a segmentation task's are a map [B, h, w, dim].

        Training needs the rng 'dropout'. `extra` holds 'utilisation' P(modality | task) [B, M, P]
        and 'features', what the encoder of each modality says [B, M, D].
        Raises ValueError for modality kinds without an encoder and for unknown choices.
        """
        check_fields(self)
        present_BM = batch.present(self.data)
        grid = self.tokens(batch, epsilon=self.epsilon, train=train)
        grid = grid.replace(mask=grid.mask & present_BM[..., None])
        s_BMD = self.per_modality(grid, train=train)
        g = self.per_task(grid, self.combine_norm, train=train)
        f_BPD = self.fuse(g.pooled, s_BMD, present_BM, train=train)
        logits = self.task_logits(self.read_by_heads(f_BPD, grid, train), g, grid)
        out = self.described(logits, g, s_BMD, grid, train=train)
        if self.weighting == "uncertainty":
            sigma = self.param("sigma", nn.initializers.ones, (len(self.data.tasks),))
            out = out.replace(extra=out.extra | {"sigma": sigma})
        value = self._regulariser(g, grid, batch)
        return out.replace(aux_losses=as_losses(value, self.aux_weights))

    def read_by_heads(self, f_BPD: Array, grid: TokenGrid, train: bool) -> Array:
        """[B, P, features]: the fused vectors as they are."""
        return f_BPD

    def task_logits(self, f_BPD: Array, g: TaskTokens, grid: TokenGrid) -> dict[str, Array]:
        """Task name -> [B, dim], or of a segmentation task a map [B, h, w, dim].

        A map is made of the patch tokens of the task's MToE branch, of the ViT's own, and of the
        fused vector. Raises ValueError for a segmentation task without an image.
        """
        tasks = self.data.tasks
        plain = [p for p, task in enumerate(tasks) if task.kind != "segmentation"]
        logits = {}
        if plain:
            heads = StackedHeads([tasks[p] for p in plain], name="heads")
            logits = heads(f_BPD[:, jnp.array(plain)])
        for p, task in enumerate(tasks):
            if task.kind == "segmentation":
                m = pictured(self.data, task)
                h_BTD = g.of_task(p, self.combine_norm, grid.x.shape[1])[:, m]
                logits[task.name] = self._map(task.name, task.dim, m, h_BTD, grid, f_BPD[:, p])
        return {task.name: logits[task.name] for task in tasks}

    def _map(self, name, channels, m, h_BTD, grid, f_BD) -> Array:
        _, height, width, _ = self.data.modalities[m].shape
        h_BTD = h_BTD + nn.Dense(self.width, name=f"skip_{name}")(grid.x[:, m])
        context_BD = nn.Dense(self.width, name=f"context_{name}")(f_BD)
        x_BND = h_BTD[:, 1 : 1 + height * width // self.patch**2] + context_BD[:, None]
        x_ByxD = rearrange(x_BND, "b (y x) d -> b y x d", x=width // self.patch)
        head = SegHead(channels, self.segment_widths, name=f"segment_{name}")
        return head(x_ByxD, size=(height, width))

    def _regulariser(self, g: TaskTokens, grid: TokenGrid, batch: Batch) -> Array:
        """Minus the information, over rows with two modalities or more."""
        counted_B = (batch.present(self.data).sum(-1) > 1) & (batch.weight > 0)
        return regulariser(
            g.slots, modality_of_token(grid), len(self.data.modalities), counted_B,
            kind=self.information, aggregate=self.aggregate,
        )  # fmt: skip


def pictured(data: DataSpec, task: TaskSpec) -> int:
    """The modality that a task segments: the first image it needs, else the first of all."""
    names = task.needs or data.modality_names
    images = [n for n in names if data.modality(n).kind == "image"]
    if not images:
        raise ValueError(f"task {task.name}: nothing to segment, no modality is an image")
    return data.modality_names.index(images[0])
