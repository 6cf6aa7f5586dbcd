"""M4oE (Wu et al., ICLR 2025) as described in public; the paper's text was not available to us.

In the paper's order:

1. Tokens: of every image, by a ViT of its own.
2. Mixture: L_jet = s <x_j / |x_j|, phi_et / |phi_et|>; D = softmax of L over tokens j, C = softmax
   over experts and slots (e, t); r_et = MLP_e(sum_j D_jet x_j / |x_j|), y_j = sum_et C_jet r_et.
3. MSoE, per modality k: blocks of attention and a mixture; s_k = mean of its tokens.
4. MToE, all tokens: slot t of every expert belongs to task t and adds tau_t to the MLP's input;
   g_t = mean_j (x_j + sum_e C_jet r_et).
5. Fusion, per task: blocks on [g_t, s_1, ..., s_M], whose first token is read by the task's head.
6. Loss: focal, weighted per task by a learned sigma, minus alpha I(M; E | T) of the distribution
   P(modality, expert, task) in the MToE's softmax of L over (j, e, t).

Letters: B rows, M modalities, T tokens of a modality, D width, P tasks.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
from flax.core import FrozenDict

from m4.methods.m4oe.grid import GridTokens, modality_of_token
from m4.methods.m4oe.information import Information, as_losses, log_joint, regulariser, utilisation
from m4.methods.m4oe.mixtures import CombineNorm, Mixtures
from m4.methods.m4oe.objective import focal_loss, objective
from m4.methods.m4oe.task_logits import task_logits
from m4.moe import soft
from m4.moe.options import SoftOptions
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class PaperM4oE(nn.Module):
    """Images, of which absent ones are masked; other modalities as in `M4oE`; tasks as there.

    Published sizes: width 768, vit_depth 12, patch 16, moe.num_experts 128, modality_experts 32,
    fusion_experts 16, depth and fusion_depth 2, moe.hidden 3072, num_heads 8, vit_heads 12.
    """

    data: DataSpec
    moe: SoftOptions = SoftOptions(inputs="unit")  # `num_experts` is the MToE's
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
    focal: float = 2.0  # power of 1 - p in the loss of classes
    class_weights: Mapping[str, tuple[float, ...]] = FrozenDict({})  # task -> weight per class
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
            epsilon=1e-12,
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
        row_loss = focal_loss(self.class_weights, self.focal)
        return objective(self.data, out, batch, self.aux_weights, row_loss)
