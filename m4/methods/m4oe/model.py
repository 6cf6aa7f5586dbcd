"""M4oE (Wu et al., ICLR 2025), as we ship it: soft mixtures of experts per modality and per task.

Every modality becomes tokens (images by a ViT of their own). A mixture per modality (MSoE) reads
its own tokens; one mixture over the tokens of all (MToE) has a slot per task in every expert; per
task, a fusion block lets the MToE token read the MSoE tokens. There is no top-k: dispatch and
combine are softmaxes, and a regulariser raises I(modality; expert | task) of their joint
distribution. Of the paper (`paper.py`) it differs in that experts read tokens as they are, that
losses are generic and that heads also read statistics of series and tables;
docs/methods/m4oe.md lists every difference.

Letters: B rows, M modalities, T tokens of a modality, D width, P tasks, N columns.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from m4.methods.m4oe.grid import GridTokens, modality_of_token
from m4.methods.m4oe.information import Information, as_losses, log_joint, regulariser, utilisation
from m4.methods.m4oe.mixtures import CombineNorm, Mixtures
from m4.methods.m4oe.objective import objective, row_loss
from m4.methods.m4oe.task_logits import task_logits
from m4.moe import soft
from m4.moe.options import SoftOptions
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class M4oE(nn.Module):
    """Any modalities; binary, multilabel, multiclass, regression and segmentation tasks."""

    data: DataSpec
    moe: SoftOptions = SoftOptions()  # `num_experts` is the MToE's
    modality_experts: int = 4
    fusion_experts: int = 4
    width: int = 64
    num_heads: int = 4
    depth: int = 1  # of every MSoE
    fusion_depth: int = 1
    dropout: float = 0.1
    vit_depth: int = 2
    vit_heads: int = 4
    patch: int = 8
    timed: Literal["grid", "summary"] = "grid"  # tokens of series and vectors
    num_queries: int = 4
    segment_widths: tuple[int, ...] = (384, 192, 96, 48)  # channels per doubling of a map
    residual: Literal["attention", "none"] = "attention"  # of the MToE's task branches
    combine_norm: CombineNorm = "expert_slot"
    information: Information = "cmi_joint"
    aggregate: Literal["row", "batch"] = "row"  # information of a row, or of the mean row
    weighting: Literal["uniform", "uncertainty"] = "uniform"  # of tasks
    aux_weights: Mapping[str, float] = FrozenDict({"information": 0.05})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task; a segmentation task's are a map [B, h, w, dim].

        Training needs the rng 'dropout'. `extra` holds 'utilisation' P(modality | task) [B, M, P]
        and 'features', what the encoder of each modality says [B, M, D].
        Raises ValueError for modality kinds without an encoder and for unknown choices.
        """
        check_fields(self)
        present_BM = batch.present(self.data)
        tokens = GridTokens(
            self.data,
            self.width,
            self.vit_heads,
            self.dropout,
            self.vit_depth,
            self.patch,
            self.timed,
            self.num_queries,
            name="tokens",
        )
        grid = tokens(batch, train=train)
        grid = grid.replace(mask=grid.mask & present_BM[..., None])

        mixtures = Mixtures(self.moe, self.num_heads, self.dropout, train)
        s_BMD = mixtures.per_modality(grid, self.modality_experts, self.depth)
        num_tasks = len(self.data.tasks)
        task_PD = self.param("task", nn.initializers.zeros, (num_tasks, self.width))
        residual = self.residual == "attention"
        g = mixtures.per_task(grid, task_PD, norm=self.combine_norm, residual=residual)
        f_BPD = mixtures.fuse(g.pooled, s_BMD, present_BM, self.fusion_experts, self.fusion_depth)

        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        wide_BPN = jnp.repeat(drop(grid.wide)[:, None], num_tasks, axis=1)
        f_BPD = jnp.concatenate([drop(nn.gelu(f_BPD)), wide_BPN], -1)
        logits = task_logits(
            self.data,
            f_BPD,
            g,
            grid,
            norm=self.combine_norm,
            patch=self.patch,
            widths=self.segment_widths,
        )

        share = modality_of_token(grid), len(self.data.modalities)
        log_p = log_joint(g.slots.logits[:, 0], g.slots.mask[:, 0], *share)
        extra = {"utilisation": utilisation(log_p), "features": s_BMD}
        if self.weighting == "uncertainty":
            extra["sigma"] = self.param("sigma", nn.initializers.ones, (num_tasks,))
        counted_B = (present_BM.sum(-1) > 1) & (batch.weight > 0)
        value = regulariser(
            g.slots, *share, counted_B, kind=self.information, aggregate=self.aggregate
        )
        aux = as_losses(value, self.aux_weights)
        moe = {"layer_0": soft.stats(g.slots, *share, train=train)}
        return Outputs(logits, aux, moe, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses minus `aux_weights['information']` times the information."""
        del step
        return objective(self.data, out, batch, self.aux_weights, row_loss)
