"""What M4oE's three models share: sizes, tokens, mixtures, and what is said of their routing.

The mixtures are per modality (MSoE), per task over all modalities (MToE), and of both (fusion). All
are blocks of residual attention and a soft mixture of experts.

Letters: B rows, S sequences, M modalities, T tokens of a sequence, E experts, D width, P tasks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4.methods.m4oe.grid import GridTokens, TokenGrid, modality_of_token
from m4.methods.m4oe.information import log_joint, utilisation
from m4.moe import soft
from m4.moe.options import SoftOptions
from m4.moe.soft import SoftExperts, SoftSlots
from m4.nn.layers import (
    AttentionBlock,
    Dropout,
    StackedDense,
    StackedLayerNorm,
    masked_mean,
    repeat,
)
from m4.specs import DataSpec
from m4.types import Array, Batch, Outputs

EPSILON = 1e-6  # of layer norms outside the ViTs
CombineNorm = Literal["expert_slot", "expert_per_task"]


class TaskTokens(flax.struct.PyTreeNode):
    """What the MToE says, and how it routed."""

    pooled: Array  # [B, P, D]
    stream: Array  # [B, T, D] tokens of all modalities, to which every task adds its own
    slots: SoftSlots

    def of_task(self, p: int, norm: CombineNorm, num_modalities: int) -> Array:
        """Every token of one task's branch, [B, M, T, D]; `pooled` is the mean of the real ones."""
        h_BTD = self.slots.by_slot(norm)[:, 0, :, p] + self.stream
        return rearrange(h_BTD, "b (m t) d -> b m t d", m=num_modalities)


class Mixtures(nn.Module):
    """Parts of a model, to be called inside its compact method."""

    data: DataSpec
    moe: SoftOptions = SoftOptions()  # `num_experts` is the MToE's
    modality_experts: int = 4
    fusion_experts: int = 4
    width: int = 64
    num_heads: int = 4
    depth: int = 1  # of every MSoE
    fusion_depth: int = 1
    scan: bool = False
    dropout: float = 0.1
    vit_depth: int = 2
    vit_heads: int = 4
    patch: int = 8
    timed: Literal["grid", "summary"] = "grid"  # tokens of series and vectors
    num_queries: int = 4
    residual: Literal["attention", "none"] = "attention"  # of the MToE's task branches
    aux_weights: Mapping[str, float] = FrozenDict({"information": 0.05})

    def tokens(self, batch: Batch, *, epsilon: float, train: bool) -> TokenGrid:
        """Tokens of all modalities; `epsilon` is of the ViTs' layer norms."""
        tokens = GridTokens(
            self.data, self.width, self.vit_heads, self.dropout, self.vit_depth, self.patch,
            self.timed, self.num_queries, epsilon=epsilon, scan=self.scan, name="tokens",
        )  # fmt: skip
        return tokens(batch, train=train)

    def per_modality(self, grid: TokenGrid, *, train: bool) -> Array:
        """MSoE: blocks of each modality's own, then the mean of its tokens, [B, M, D]."""
        num, stacks = self.modality_experts, grid.x.shape[1]

        def layer(i: int, x_BMTD: Array) -> tuple[Array, None]:
            return self._block(f"msoe_{i}", x_BMTD, grid.mask, num, stacks, train=train), None

        x_BMTD, _ = repeat(layer, self.depth, grid.x, scan=self.scan, prefix="msoe_")
        return masked_mean(x_BMTD, grid.mask, dim=2)

    def per_task(self, grid: TokenGrid, norm: CombineNorm, *, train: bool) -> TaskTokens:
        """MToE: slot p of every expert belongs to task p and adds its embedding to the input.

        The block is not public. Ours: attention over all tokens, then the mixture in the place of
        the MLP; every task's branch adds its mix of expert outputs to the same residual stream.
        """
        task_PD = self.param("task", nn.initializers.zeros, (len(self.data.tasks), self.width))
        x_BSTD = rearrange(grid.x, "b m t d -> b 1 (m t) d")
        mask_BST = rearrange(grid.mask, "b m t -> b 1 (m t)")
        x_BSTD, u_BSTD = self._attend("mtoe", x_BSTD, mask_BST, 1, train)
        experts = SoftExperts(self.moe, num_slots=len(task_PD), name="mtoe_experts")
        slots = experts(u_BSTD, mask_BST, slot_PD=task_PD)
        stream_BTD = x_BSTD[:, 0]
        if self.residual == "none":
            stream_BTD = jnp.zeros_like(stream_BTD)
        mean_BD = masked_mean(stream_BTD, mask_BST[:, 0], dim=1)
        pooled_BPD = slots.pooled_by_slot(norm)[:, 0] + mean_BD[:, None]
        return TaskTokens(pooled_BPD, stream_BTD, slots)

    def fuse(self, g_BPD: Array, s_BMD: Array, present_BM: Array, *, train: bool) -> Array:
        """Per task, its token reads the modalities'; blocks are shared by tasks. [B, P, D]."""
        tasks, width = g_BPD.shape[1:]
        s_BPMD = jnp.repeat(s_BMD[:, None], tasks, axis=1)
        x_BPTD = jnp.concatenate([g_BPD[:, :, None], s_BPMD], 2)
        mask_BT = jnp.pad(present_BM, ((0, 0), (1, 0)), constant_values=True)
        mask_BPT = jnp.repeat(mask_BT[:, None], tasks, axis=1)

        def layer(i: int, x_BPTD: Array) -> tuple[Array, None]:
            num = self.fusion_experts
            return self._block(f"fusion_{i}", x_BPTD, mask_BPT, num, train=train), None

        x_BPTD, _ = repeat(layer, self.fusion_depth, x_BPTD, scan=self.scan, prefix="fusion_")
        f_BPD = StackedLayerNorm(tasks, EPSILON, name="norm")(x_BPTD[:, :, 0])
        return StackedDense(width, tasks, name="project")(f_BPD)

    def described(
        self, logits: dict[str, Array], g: TaskTokens, s_BMD: Array, grid: TokenGrid, *, train: bool
    ) -> Outputs:
        """Logits, the MToE's load, and `extra` as of `M4oE`; losses are the model's."""
        share = modality_of_token(grid), len(self.data.modalities)
        log_p = log_joint(g.slots.logits[:, 0], g.slots.mask[:, 0], *share)
        extra = {"utilisation": utilisation(log_p), "features": s_BMD}
        return Outputs(logits, {}, {"layer_0": soft.stats(g.slots, *share, train=train)}, extra)

    @nn.nowrap
    def _attend(self, name, x_BSTD, mask_BST, stacks, train) -> tuple[Array, Array]:
        """Residual attention within each sequence of a stack, and what the experts read."""
        dims = self.num_heads, stacks, self.dropout, EPSILON
        x_BSTD = AttentionBlock(*dims, name=f"{name}_attention")(x_BSTD, mask_BST, train=train)
        return x_BSTD, StackedLayerNorm(stacks, EPSILON, name=f"{name}_norm")(x_BSTD)

    @nn.nowrap
    def _block(self, name, x_BSTD, mask_BST, num_experts, stacks=1, *, train) -> Array:
        """Pre-norm residual attention, then a soft mixture."""
        x_BSTD, u_BSTD = self._attend(name, x_BSTD, mask_BST, stacks, train)
        options = dataclasses.replace(self.moe, num_experts=num_experts)
        experts = SoftExperts(options, num_stacks=stacks, name=f"{name}_experts")
        drop = Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")
        return x_BSTD + drop(experts(u_BSTD, mask_BST).tokens())
