"""M4oE (Wu et al., ICLR 2025) as released: `tangzhengxu2001/m4oe`, commit fb2906c.

The modules of the authors' code, which differ from the paper (`paper.py`) so: an absent image is a
zero image, attended and routed like any other; rows only train with the labels of all tasks; the
information is I(token; task), experts summed out, summed over rows, and commented out of their loss
(`aux_weights={'information': 0}`). docs/methods/m4oe.md lists every difference.

Letters: B rows, M modalities, T tokens of a modality, D width, P tasks.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from m4.methods.m4oe.grid import GridTokens, modality_of_token
from m4.methods.m4oe.information import as_losses, log_joint, released_information, utilisation
from m4.methods.m4oe.mixtures import Mixtures
from m4.methods.m4oe.objective import focal_loss, objective
from m4.moe import soft
from m4.moe.options import SoftOptions
from m4.nn.layers import StackedHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class ReleasedM4oE(nn.Module):
    """Images (other modalities as in `M4oE`); tasks with classes, and generic ones.

    Published sizes are the paper's.
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
    residual: Literal["attention", "none"] = "attention"  # of the MToE's task branches
    focal: float = 2.0  # power of 1 - p in the loss of classes
    class_weights: Mapping[str, tuple[float, ...]] = FrozenDict({})  # task -> weight per class
    aux_weights: Mapping[str, float] = FrozenDict({"information": 0.05})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, and `extra` as of `M4oE`. Training needs the rng 'dropout'.

        Raises ValueError for modality and task kinds that it cannot take and for unknown choices.
        """
        check_fields(self)
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
        everyone_BM = jnp.ones((len(batch.weight), len(self.data.modalities)), bool)

        mixtures = Mixtures(self.moe, self.num_heads, self.dropout, train)
        s_BMD = mixtures.per_modality(grid, self.modality_experts, self.depth)
        num_tasks = len(self.data.tasks)
        task_PD = self.param("task", nn.initializers.zeros, (num_tasks, self.width))
        residual = self.residual == "attention"
        g = mixtures.per_task(grid, task_PD, norm="expert_slot", residual=residual)
        f_BPD = mixtures.fuse(g.pooled, s_BMD, everyone_BM, self.fusion_experts, self.fusion_depth)
        logits = StackedHeads(self.data.tasks, name="heads")(f_BPD)

        share = modality_of_token(grid), len(self.data.modalities)
        logits_BTEP, mask_BT = g.slots.logits[:, 0], g.slots.mask[:, 0]
        log_p = log_joint(logits_BTEP, mask_BT, *share)
        extra = {"utilisation": utilisation(log_p), "features": s_BMD}
        value_B = released_information(logits_BTEP, mask_BT)
        aux = as_losses(-jnp.sum(value_B * (batch.weight > 0)), self.aux_weights)
        moe = {"layer_0": soft.stats(g.slots, *share, train=train)}
        return Outputs(logits, aux, moe, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Focal losses of the rows that have every label."""
        del step
        batch = batch.replace(weight=batch.weight * all_labels(batch))
        row_loss = focal_loss(self.class_weights, self.focal)
        return objective(self.data, out, batch, self.aux_weights, row_loss)


def all_labels(batch: Batch) -> Array:
    """1 for rows with every label, else 0, f32[B]."""
    known = [
        jnp.asarray(t.mask).reshape(t.mask.shape[0], -1).all(-1) for t in batch.targets.values()
    ]
    return jnp.stack(known, -1).all(-1).astype(jnp.float32)
