"""M4oE's three mixtures: per modality (MSoE), per task over all modalities (MToE), and fusion.

All are blocks of residual attention and a soft mixture of experts.

Letters: B rows, S sequences, M modalities, T tokens of a sequence, D width, P tasks.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from einops import rearrange

from m4.methods.m4oe.grid import TokenGrid
from m4.moe.options import SoftOptions
from m4.moe.soft import SoftExperts, SoftSlots
from m4.nn.layers import AttentionBlock, StackedDense, StackedLayerNorm, masked_mean
from m4.types import Array

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


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """The mixtures of one call of a method, in whose scope they make their parameters."""

    moe: SoftOptions  # `num_experts` is the MToE's
    num_heads: int
    dropout: float
    train: bool

    def per_modality(self, grid: TokenGrid, num_experts: int, depth: int) -> Array:
        """MSoE: blocks of each modality's own, then the mean of its tokens, [B, M, D]."""
        x_BMTD = grid.x
        for i in range(depth):
            x_BMTD = self._block(f"msoe_{i}", x_BMTD, grid.mask, num_experts, x_BMTD.shape[1])
        return masked_mean(x_BMTD, grid.mask, dim=2)

    def per_task(
        self, grid: TokenGrid, task_PD: Array, *, norm: CombineNorm, residual: bool = True
    ) -> TaskTokens:
        """MToE: slot p of every expert belongs to task p and adds its embedding to the input.

        The block is not public. Ours: attention over all tokens, then the mixture in the place of
        the MLP; every task's branch adds its mix of expert outputs to the same residual stream.
        """
        x_BSTD = rearrange(grid.x, "b m t d -> b 1 (m t) d")
        mask_BST = rearrange(grid.mask, "b m t -> b 1 (m t)")
        x_BSTD = self._attend("mtoe", x_BSTD, mask_BST)
        u_BSTD = StackedLayerNorm(1, EPSILON, name="mtoe_norm")(x_BSTD)
        experts = SoftExperts(self.moe, num_slots=len(task_PD), name="mtoe_experts")
        slots = experts(u_BSTD, mask_BST, slot_PD=task_PD)
        stream_BTD = x_BSTD[:, 0] if residual else jnp.zeros_like(x_BSTD[:, 0])
        mean_BD = masked_mean(stream_BTD, mask_BST[:, 0], dim=1)
        pooled_BPD = slots.pooled_by_slot(norm)[:, 0] + mean_BD[:, None]
        return TaskTokens(pooled_BPD, stream_BTD, slots)

    def fuse(
        self, g_BPD: Array, s_BMD: Array, present_BM: Array, num_experts: int, depth: int
    ) -> Array:
        """Per task, its token reads the modalities'; blocks are shared by tasks. [B, P, D]."""
        tasks, width = g_BPD.shape[1:]
        s_BPMD = jnp.repeat(s_BMD[:, None], tasks, axis=1)
        x_BPTD = jnp.concatenate([g_BPD[:, :, None], s_BPMD], 2)
        mask_BT = jnp.pad(present_BM, ((0, 0), (1, 0)), constant_values=True)
        mask_BPT = jnp.repeat(mask_BT[:, None], tasks, axis=1)
        for i in range(depth):
            x_BPTD = self._block(f"fusion_{i}", x_BPTD, mask_BPT, num_experts)
        f_BPD = StackedLayerNorm(tasks, EPSILON, name="norm")(x_BPTD[:, :, 0])
        return StackedDense(width, tasks, name="project")(f_BPD)

    def _attend(self, name, x_BSTD, mask_BST, stacks=1) -> Array:
        block = AttentionBlock(
            self.num_heads, stacks, self.dropout, EPSILON, name=f"{name}_attention"
        )
        return block(x_BSTD, mask_BST, train=self.train)

    def _block(self, name, x_BSTD, mask_BST, num_experts, stacks=1) -> Array:
        """Pre-norm residual attention, then a soft mixture, within each sequence of a stack."""
        x_BSTD = self._attend(name, x_BSTD, mask_BST, stacks)
        u_BSTD = StackedLayerNorm(stacks, EPSILON, name=f"{name}_norm")(x_BSTD)
        options = dataclasses.replace(self.moe, num_experts=num_experts)
        experts = SoftExperts(options, num_stacks=stacks, name=f"{name}_experts")
        drop = nn.Dropout(self.dropout, deterministic=not self.train, name=f"{name}_drop")
        return x_BSTD + drop(experts(u_BSTD, mask_BST).tokens())
