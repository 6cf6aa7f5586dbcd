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

from flax.core import FrozenDict

from m4 import task_losses
from m4.methods.m4oe.objective import focal_loss, objective
from m4.methods.m4oe.regularised import RegularisedMixtures
from m4.moe.options import SoftOptions
from m4.types import Array, Batch, Mean, Outputs


class PaperM4oE(RegularisedMixtures):
    """Images, of which absent ones are masked; other modalities as in `M4oE`; tasks as there.

    Published sizes: width 768, vit_depth 12, patch 16, moe.num_experts 128, modality_experts 32,
    fusion_experts 16, depth and fusion_depth 2, moe.hidden 3072, num_heads 8, vit_heads 12.
    """

    moe: SoftOptions = SoftOptions(inputs="unit")
    focal: float = 2.0  # power of 1 - p in the loss of classes
    class_weights: Mapping[str, tuple[float, ...]] = FrozenDict({})  # task -> weight per class

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses minus `aux_weights['information']` times the information."""
        del step
        row_loss = focal_loss(self.class_weights, self.focal)
        batch = task_losses.counted(self.data, batch)
        return objective(self.data, out, batch, self.aux_weights, row_loss, by_name=True)
