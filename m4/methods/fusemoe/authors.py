"""What FuseMoE's paper and its authors' code have in common.

Letters: B rows (patients), M modalities in the spec's order, Q query times, D width, U numbers of a
modality (Q D), N routed units, O output numbers of a unit (M Q D).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import combination_index, torch_uniform
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import StaticTokens, Streams
from m4.nn.encoders.query_tokens import Impute, Level, QueryTokens, impute
from m4.nn.layers import AttentionBlock, Dropout, MLPBlock, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs


class AuthorsFuseMoE(nn.Module):
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
    aux_weights: Mapping[str, float] = FrozenDict()

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim].

        Training needs the rngs 'dropout' and 'gate'. Raises ValueError for modality kinds without
        an encoder and for unknown choices.
        """
        check_fields(self, depth=1)
        present_BM, moe = batch.present(self.data), {}
        routing = {
            "valid_B": present_BM.any(-1) & (batch.weight > 0),
            "pattern_B": combination_index(present_BM, modulo=self.moe.num_experts),
        }
        x_BMQD = self.embed(batch, present_BM, routing["valid_B"], train)
        x_BMQD = self._drop("embed_drop", x_BMQD, train)
        num, every_BMQ = x_BMQD.shape[1], jnp.ones(x_BMQD.shape[:3], bool)  # absent ones, too
        for i in range(self.depth):
            block = AttentionBlock(self.num_heads, num, self.dropout, name=f"time_{i}")
            x_BMQD = block(x_BMQD, every_BMQ, train=train)
            u_BMQD = StackedLayerNorm(num, name=f"norm_{i}")(x_BMQD)
            y_BMQD, moe[f"layer_{i}"] = self.route(f"layer_{i}", u_BMQD, routing, train)
            x_BMQD += self._drop(f"drop_{i}", y_BMQD, train)
            mlp = MLPBlock(4 * self.width, num, self.dropout, name=f"mlp_{i}")
            x_BMQD = mlp(x_BMQD, train=train)
        logits_of = TaskHeads(self.data.tasks, two_logits=True, name="heads")
        h_BD = self._read_out(x_BMQD, train)
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(logits_of(h_BD), aux, moe)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The task plus `aux_weights` times losses of routing; see `task_losses.objective`."""
        del step
        return task_losses.objective(self.data, out, batch, self.aux_weights)

    def embed(self, batch: Batch, present_BM: Array, valid_B: Array, train: bool) -> Array:
        """All modalities at the query times, [B, M, Q, D]; rows outside `valid_B` fill up."""
        raise NotImplementedError

    def route(
        self, name: str, u_BMQD: Array, routing: Mapping[str, Array], train: bool
    ) -> tuple[Array, MoeAux]:
        """What a layer's experts make of `u`, [B, M, Q, D]."""
        raise NotImplementedError

    def on_query_times(
        self, streams: Streams, train: bool, *, num_heads: int, impute: Impute = impute
    ) -> Array:
        """[B, M, Q, D] in the spec's order; a modality without times has Q equal tokens."""
        num_queries = self.num_queries
        sizes = self.width, num_heads, num_queries, self.embed_time, self.utde, self.dropout
        timed = QueryTokens(*sizes, torch_uniform(1), project=False, impute=impute, name="grid")
        static = StaticTokens(self.data, self.width, self.dropout, name="static")
        tokens = [timed(streams, train=train)] if streams.num_timed else []
        for x_BD in static(streams, train=train):
            tokens.append(jnp.repeat(x_BD[:, None, None], num_queries, axis=2))
        return jnp.concatenate(tokens, axis=1)[:, np.argsort(streams.modality)]

    def types_and_positions(self) -> tuple[Array, Array]:
        """Learned vectors of the modalities [M, D] and of the query times [Q, D]."""
        normal, num = nn.initializers.normal, len(self.data.modalities)
        type_MD = self.param("type", normal(1.0), (num, self.width))
        return type_MD, self.param("position", normal(0.02), (self.num_queries, self.width))

    def _drop(self, name: str, x: Array, train: bool) -> Array:
        return Dropout(self.dropout, deterministic=not train, name=name)(x)

    def _read_out(self, x_BMQD: Array, train: bool) -> Array:
        """The last query of every modality through a residual MLP, [B, M D] (appendix E.2)."""
        last_BMD = StackedLayerNorm(x_BMQD.shape[1], name="norm")(x_BMQD)[:, :, -1]
        h_BD = rearrange(last_BMD, "b m d -> b (m d)")
        up, down = (
            nn.Dense(h_BD.shape[-1], kernel_init=torch_uniform(), name=name)
            for name in ("head_up", "head_down")
        )
        return h_BD + down(self._drop("head_drop", nn.relu(up(h_BD)), train))


class PatientMoE(nn.Module):
    """One expert decision per patient ('joint') or per patient and modality.

    Experts of 'permod' and 'disjoint' read one modality and write to all; what those of a patient's
    modalities say is added (authors' `sparse_moe.py`).
    """

    options: MoEOptions
    losses: tuple[str, ...]
    gate_init: nn.initializers.Initializer | None = None  # see `MoE`
    fixed_gates: bool = False
    mixed: Callable[[Array], Array] | None = None  # function of every unit's mixture

    @nn.compact
    def __call__(
        self, u_BMU: Array, valid_B: Array, pattern_B: Array, *, train: bool
    ) -> tuple[Array, MoeAux]:
        """[B, M, U] -> [B, M, U]; statistics of every modality, 'joint' ones repeated."""
        rows, num, size = u_BMU.shape
        joint = self.options.share == "joint"
        units = 1 if joint else num
        layer = MoE(
            self.options,
            num_modalities=units,
            out=num * size,
            losses=self.losses,
            gate_init=self.gate_init,
            fixed_gates=self.fixed_gates,
            name="moe",
        )
        y_NO, aux = layer(
            u_BMU.reshape(rows * units, -1),
            valid_N=jnp.repeat(valid_B, units),
            modality_N=None if joint else np.tile(np.arange(num), rows),
            pattern_N=jnp.repeat(pattern_B, units),
            num_rows=rows,
            train=train,
        )
        y_NO = y_NO if self.mixed is None else self.mixed(y_NO)
        if joint:  # a patient's decision is every modality's
            names = {"by_modality", "by_row"} & set(aux.stats)
            every = {name: jnp.repeat(aux.stats[name], num, axis=-2) for name in names}
            aux = aux.replace(stats=aux.stats | every)
        return y_NO.reshape(rows, units, num, size).sum(1), aux
