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

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from m4 import task_losses
from m4.methods.m4oe.grid import TokenGrid
from m4.methods.m4oe.objective import objective, row_loss
from m4.methods.m4oe.regularised import RegularisedMixtures
from m4.nn.layers import Dropout
from m4.types import Array, Batch, Mean, Outputs


class M4oE(RegularisedMixtures):
    """Any modalities; binary, multilabel, multiclass, regression and segmentation tasks."""

    epsilon: ClassVar[float] = 1e-6

    def read_by_heads(self, f_BPD: Array, grid: TokenGrid, train: bool) -> Array:
        """The fused vectors, and statistics of series and tables, [B, P, D + N]."""
        drop = Dropout(self.dropout, deterministic=not train, name="head_drop")
        wide_BPN = jnp.repeat(drop(grid.wide)[:, None], f_BPD.shape[1], axis=1)
        return jnp.concatenate([drop(nn.gelu(f_BPD)), wide_BPN], -1)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses minus `aux_weights['information']` times the information."""
        del step
        batch = task_losses.counted(self.data, batch)
        return objective(self.data, out, batch, self.aux_weights, row_loss)
