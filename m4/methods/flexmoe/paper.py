"""Flex-MoE as published (Yun et al., NeurIPS 2024): its equations, in the paper's order.

Tokens of absent modalities come from the bank (section 3.2). A transformer follows whose MLPs are
experts: their router (eq. 1), its balance over complete rows ("G-router"), the combination's expert
of incomplete rows ("S-router", eq. 3) and the balance of their other choices (eq. 4). Where the
paper says nothing, the authors' code decides (`released.py`); docs/methods/flexmoe.md lists every
difference.

Letters: B rows, M modalities, P tokens of a modality, T = M P, D width, F features of the heads.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import torch_uniform
from m4.methods.flexmoe import completeness
from m4.methods.flexmoe.bank import complete
from m4.methods.flexmoe.feed_forward import feed_forward
from m4.methods.flexmoe.patches import patch_tokens
from m4.moe.options import MoEOptions
from m4.nn.layers import SelfAttention, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs


class PaperFlexMoE(nn.Module):
    """Fuses up to 12 modalities of kinds series, vectors, table, codes, text, signal and image.

    Published sizes are the defaults (ADNI); MIMIC-IV has num_experts 32, top_k 3.
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions("linear", "noisy_top_k", num_experts=16, top_k=4, hidden=256)
    width: int = 128
    depth: int = 1  # layers: sparse, dense, sparse, ...
    num_heads: int = 4
    num_patches: int = 16  # tokens of a modality
    dropout: float = 0.5
    aux_weights: Mapping[str, float] = FrozenDict(router=0.01, importance=0.01, load=0.01)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for modality kinds without an encoder, for impossible fields and for
        fewer experts than combinations of modalities.
        """
        check_fields(self, depth=1, num_patches=1)
        completeness.check_experts(self.moe.num_experts, len(self.data.modalities))
        present_BM = batch.present(self.data)
        routable_B = present_BM.any(-1) & (batch.weight > 0)

        # Patches, and those of the bank (section 3.2).
        tokens = patch_tokens(self.data, batch, self.width, self.num_patches, train=train)
        x_BMPD = complete(tokens, present_BM)
        x_BMPD += self.param("position", nn.initializers.zeros, x_BMPD.shape[1:])
        x_BTD = rearrange(x_BMPD, "b m p d -> b (m p) d")

        moe: dict[str, MoeAux] = {}
        for i in range(self.depth):
            x_BTD, routed = self._layer(i, x_BTD, present_BM, routable_B, train)
            moe |= routed

        # The mean token of every modality.
        h_BF = rearrange(x_BTD.reshape(x_BMPD.shape).mean(2), "b m d -> b (m d)")
        heads = TaskHeads(
            self.data.tasks, two_logits=True, kernel_init=torch_uniform(), name="heads"
        )
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(heads(dict.fromkeys(self.data.task_names, h_BF)), aux, moe)

    def _layer(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, train: bool
    ) -> tuple[Array, dict[str, MoeAux]]:
        """Add & Norm, as drawn: h = LN(x + drop(Attn x)), then LN(h + drop(F h))."""
        norm = [StackedLayerNorm(name=f"norm_{i}_{n}") for n in range(2)]
        drop = [
            nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}_{n}")
            for n in range(2)
        ]
        init = torch_uniform(self.width)
        attend = SelfAttention(
            self.num_heads, dropout=self.dropout, kernel_init=init, qkv_bias_init=None,
            bias_init=init, name=f"attention_{i}",
        )  # fmt: skip
        every_BMT = jnp.ones(x_BTD.shape[:2], bool)[:, None]  # tokens of the bank are read
        a_BTD = attend(x_BTD[:, None], every_BMT, train=train)[:, 0]
        h_BTD = norm[0](x_BTD + drop[0](a_BTD))
        y_BTD, routed = feed_forward(
            i, h_BTD, present_BM, routable_B, self._softmax_first(),
            completeness.chosen(self.aux_weights, completeness.PAPER_LOSSES),
            dropout=self.dropout, train=train,
        )  # fmt: skip
        return norm[1](h_BTD + drop[1](y_BTD)), routed

    def _softmax_first(self) -> MoEOptions:
        """Eq. 1: the softmax of all scores, then the largest k of it."""
        if self.moe.router not in ("top_k", "noisy_top_k"):
            return self.moe
        return self.moe.with_router(normalise="before")

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses."""
        return task_losses.objective(self.data, out, batch, self.aux_weights)
