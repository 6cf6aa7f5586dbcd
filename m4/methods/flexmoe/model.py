"""Flex-MoE (Yun et al., NeurIPS 2024), as we ship it: learned tokens for whatever a row lacks.

Every modality becomes one token, from statistics over time; that of an absent modality is read from
a bank indexed by (combination of the present ones, absent one). Attention over all tokens and a
sparse mixture of experts follow; a loss sends the tokens of incomplete rows to their combination's
expert. The heads read all tokens, and the statistics. `paper.py` holds the paper's equations,
`released.py` the authors' code; docs/methods/flexmoe.md lists every difference.

Letters: B rows, M modalities, P = 1 token of a modality, T = M P, D width, N statistics, F features
of the heads.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4 import task_losses
from m4.methods.flexmoe.bank import complete
from m4.methods.flexmoe.transformer import Routed, Transformer
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import Dropout, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.types import Array, Batch, Outputs


class FlexMoE(Transformer):
    """Fuses any number of modalities of kinds series, vectors, table, codes, text and image.

    Combinations share experts where there are too few.
    """

    bank: Literal["auto", "full", "factorised"] = "auto"  # full up to 6 modalities
    bank_rank: int = 16  # of the factorised bank

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for modality kinds without an encoder and for impossible fields.
        """
        check_fields(self, depth=1, bank_rank=1)
        check_fields(self.moe, num_experts=2)

        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, wide_BN = summary(batch, train=train)
        bank = {"kind": self.bank, "rank": self.bank_rank, "scale": 0.02}
        x_BMPD = complete(x_BMD[:, :, None], batch.present(self.data), **bank)
        x_BMPD, moe = self.layers(x_BMPD, batch, train=train)

        # All tokens through a hidden layer, and the statistics.
        drop = Dropout(self.dropout, deterministic=not train, name="head_drop")
        x_BMPD = StackedLayerNorm(name="norm")(x_BMPD)
        h_BD = nn.Dense(self.width, name="head")(drop(rearrange(x_BMPD, "b m p d -> b (m p d)")))
        h_BF = jnp.concatenate([drop(nn.gelu(h_BD)), drop(wide_BN)], -1)
        heads = TaskHeads(self.data.tasks, name="heads")
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(heads(h_BF), aux, moe)

    @nn.nowrap
    def layer(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, train: bool
    ) -> Routed:
        """Pre-norm: h = x + drop(Attn(LN x)), then h + drop(F(LN h))."""
        norm, drop = self.norms(i), self.drops(i, 2, train)
        h_BTD = x_BTD + drop[0](self.attend(i, norm[0](x_BTD), train))
        y_BTD, routed = self.feed_forward(
            i, norm[1](h_BTD), present_BM, routable_B, self.moe, train
        )
        return h_BTD + drop[1](y_BTD), routed
