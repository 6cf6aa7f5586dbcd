"""FuseMoE by the equations of its paper (Han et al., NeurIPS 2024), in their order.

A routed unit is a patient, all query times side by side; absent modalities are a learned vector,
which is attended and routed like data. docs/methods/fusemoe.md compares the three versions.

Letters: B rows (patients), M modalities in the spec's order, Q query times, D width.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import combination_index, torch_uniform
from m4.methods.fusemoe.authors import PatientMoE, on_query_times, read_out
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import StaticTokens, gather
from m4.nn.encoders.query_tokens import Level, QueryTokens
from m4.nn.layers import AttentionBlock, MissingIndicator, MLPBlock, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class PaperFuseMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table, codes and text.

    Published sizes: width 128, num_queries 48, num_heads 8, embed_time 64, depth 3, dropout 0.1,
    utde 'batch', and of `moe` hidden 512, num_experts 16, top_k 4 (2 with share 'disjoint').
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions(router="noisy_top_k", share="permod")
    width: int = 64
    depth: int = 1
    num_heads: int = 4
    num_queries: int = 12
    embed_time: int = 32
    dropout: float = 0.2
    utde: Level = "batch_seq_feature"
    aux_weights: Mapping[str, float] = FrozenDict({"importance": 0.01, "load": 0.01})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim].

        Training needs the rngs 'dropout' and 'gate'; evaluation none. Raises ValueError for
        modality kinds without an encoder and for unknown choices.
        """
        check_fields(self, depth=1)
        present_BM, moe = batch.present(self.data), {}
        x_BMQD = self._embed(batch, present_BM, train)
        every_BMQ = jnp.ones(x_BMQD.shape[:3], bool)  # absent modalities are attended, too
        for i in range(self.depth):
            block = AttentionBlock(self.num_heads, x_BMQD.shape[1], self.dropout, name=f"time_{i}")
            x_BMQD = block(x_BMQD, every_BMQ, train=train)
            x_BMQD, moe[f"layer_{i}"] = self._route(i, x_BMQD, batch, present_BM, train)
        h_BD = read_out(x_BMQD, dropout=self.dropout, train=train)  # appendix E.2
        heads = TaskHeads(self.data.tasks, two_logits=True, name="heads")
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(heads(dict.fromkeys(self.data.task_names, h_BD)), aux, moe)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Section 3.3: the task plus `aux_weights` times importance, load and entropy losses."""
        del step
        return task_losses.objective(self.data, out, batch, self.aux_weights)

    def _embed(self, batch: Batch, present_BM: Array, train: bool) -> Array:
        """Section 3.1: UTDE and mTAND at the query times; Z_m stands for an absent modality."""
        sizes = self.width, self.num_heads, self.num_queries, self.embed_time
        timed = QueryTokens(
            *sizes,
            self.utde,
            self.dropout,
            torch_uniform(1),
            project=False,
            name="grid",
        )
        static = StaticTokens(self.data, self.width, self.dropout, name="static")
        x_BMQD = on_query_times(gather(self.data, batch), timed, static, train=train)
        num, (num_queries, width) = x_BMQD.shape[1], x_BMQD.shape[2:]
        type_MD = self.param("type", nn.initializers.normal(1.0), (num, width))
        position_QD = self.param("position", nn.initializers.normal(0.02), (num_queries, width))
        x_BMQD = MissingIndicator(num, name="missing")(x_BMQD + type_MD[:, None], present_BM)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="embed_drop")
        return drop(width**0.5 * x_BMQD + position_QD)

    def _route(self, i: int, x_BMQD: Array, batch: Batch, present_BM: Array, train: bool):
        """Section 3.2: x + MoE(norm x) with patients as units, then x + FFN_m(norm x)."""
        num, num_queries = x_BMQD.shape[1:3]
        u_BMQD = StackedLayerNorm(num, name=f"norm_{i}")(x_BMQD)
        losses = tuple(sorted(self.aux_weights))
        y_BMU, aux = PatientMoE(self.moe, losses, name=f"layer_{i}")(
            rearrange(u_BMQD, "b m q d -> b m (q d)"),
            present_BM.any(-1) & (batch.weight > 0),
            combination_index(present_BM, modulo=self.moe.num_experts),
            train=train,
        )
        y_BMQD = rearrange(y_BMU, "b m (q d) -> b m q d", q=num_queries)
        x_BMQD += nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")(y_BMQD)
        mlp = MLPBlock(4 * self.width, num, self.dropout, name=f"mlp_{i}")
        return mlp(x_BMQD, train=train), aux
