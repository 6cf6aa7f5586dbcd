"""Flex-MoE (Yun et al., NeurIPS 2024), as we ship it: learned tokens for whatever a row lacks.

Every modality becomes one token, from statistics over time; that of an absent modality is read from
a bank indexed by (combination of the present ones, absent one). Attention over all tokens and a
sparse mixture of experts follow; a loss sends the tokens of incomplete rows to their combination's
expert. The heads read all tokens, and the statistics. `paper.py` holds the paper's equations,
`released.py` the authors' code; docs/methods/flexmoe.md lists every difference.

Letters: B rows, M modalities, P = 1 token of a modality, T = M P, D width, N statistics, F features
of the heads.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.methods.flexmoe import completeness
from m4.methods.flexmoe.bank import complete
from m4.methods.flexmoe.feed_forward import feed_forward
from m4.moe.options import MoEOptions
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import SelfAttention, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs


class FlexMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table, codes, text and image.

    Published sizes are the defaults (ADNI); MIMIC-IV has num_experts 32, top_k 3. Combinations
    share experts where there are too few.
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions("linear", "noisy_top_k", num_experts=16, top_k=4, hidden=256)
    width: int = 128
    depth: int = 1  # layers: sparse, dense, sparse, ...
    num_heads: int = 4
    dropout: float = 0.5
    bank: Literal["auto", "full", "factorised"] = "auto"  # full up to 6 modalities
    bank_rank: int = 16  # of the factorised bank
    aux_weights: Mapping[str, float] = FrozenDict(router=0.01, importance=0.01, load=0.01)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for modality kinds without an encoder and for impossible fields.
        """
        check_fields(self, depth=1, bank_rank=1)
        check_fields(self.moe, num_experts=2)
        present_BM = batch.present(self.data)
        routable_B = present_BM.any(-1) & (batch.weight > 0)

        # A token of every modality.
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, wide_BN = summary(batch, train=train)
        bank = {"kind": self.bank, "rank": self.bank_rank, "scale": 0.02}
        x_BMPD = complete(x_BMD[:, :, None], present_BM, **bank)
        x_BMPD += self.param("position", nn.initializers.zeros, x_BMPD.shape[1:])
        x_BTD = rearrange(x_BMPD, "b m p d -> b (m p) d")

        moe: dict[str, MoeAux] = {}
        for i in range(self.depth):
            x_BTD, routed = self._layer(i, x_BTD, present_BM, routable_B, train)
            moe |= routed

        # All tokens through a hidden layer, and the statistics.
        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        x_BTD = StackedLayerNorm(name="norm")(x_BTD)
        h_BD = nn.Dense(self.width, name="head")(drop(rearrange(x_BTD, "b t d -> b (t d)")))
        h_BF = jnp.concatenate([drop(nn.gelu(h_BD)), drop(wide_BN)], -1)
        heads = TaskHeads(self.data.tasks, name="heads")
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(heads(dict.fromkeys(self.data.task_names, h_BF)), aux, moe)

    def _layer(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, train: bool
    ) -> tuple[Array, dict[str, MoeAux]]:
        """Pre-norm: h = x + drop(Attn(LN x)), then h + drop(F(LN h))."""
        norm = [StackedLayerNorm(name=f"norm_{i}_{n}") for n in range(2)]
        drop = [
            nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}_{n}")
            for n in range(2)
        ]
        attend = SelfAttention(self.num_heads, dropout=self.dropout, name=f"attention_{i}")
        every_BMT = jnp.ones(x_BTD.shape[:2], bool)[:, None]  # tokens of the bank are read
        a_BTD = attend(norm[0](x_BTD)[:, None], every_BMT, train=train)[:, 0]
        h_BTD = x_BTD + drop[0](a_BTD)
        y_BTD, routed = feed_forward(
            i, norm[1](h_BTD), present_BM, routable_B, self.moe,
            completeness.chosen(self.aux_weights), dropout=self.dropout, train=train,
        )  # fmt: skip
        return h_BTD + drop[1](y_BTD), routed

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses."""
        return task_losses.objective(self.data, out, batch, self.aux_weights)
