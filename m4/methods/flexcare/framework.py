"""The framework of FlexCare's three models, on tokens of any kind, and its sizes.

Letters: B rows, M modalities, C combinations, K tasks, L data tokens, T = K + C + L, D width,
N = B K C routed tokens, E experts, F = 2 D features of a head.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import combination_index, softmax, torch_uniform
from m4.methods.flexcare.combinations import attention_bias, available, members
from m4.methods.flexcare.covariance import covariance
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.layers import MLP, Dropout, SelfAttention, StackedLayerNorm, repeat
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

BY_COMBINATION = ("by_modality", "by_row", "dropped_by_modality")
Init = nn.initializers.Initializer


class Framework(nn.Module):
    """Parts of a model, to be called inside its compact method.

    Published sizes are the defaults. Of M modalities there are 2^M - 1 combinations, or with
    `max_size` the full set and those of at most so many.
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions("task_additive", "noisy_top_k", num_experts=10, activation="relu")
    width: int = 128
    depth: int = 4
    scan: bool = False
    num_heads: int = 2
    mlp: int = 512  # hidden width of the transformer
    dropout: float = 0.1
    temperature: float = 0.2  # of the fusion
    max_size: int | None = None  # of a combination but the full one; None: any
    aux_weights: Mapping[str, float] = FrozenDict(covariance=0.5, importance=0.01, load=0.01)

    def answers(
        self, x_BLD: Array, mask_BL: Array, owner_L: np.ndarray, batch: Batch, *, train: bool
    ) -> tuple[Array, dict[str, Array], MoeAux]:
        """What every task's head reads [B, K, F], auxiliary losses, and what the experts did.

        In one pass: no token but the task's own depends on the task. `owner_L` is the modality of
        a token. Raises ValueError for too many combinations.
        """
        num_tasks, rows = len(self.data.tasks), batch.uid.shape[0]
        member_CM = members(len(self.data.modalities), self.max_size)
        ready_BC = available(batch.present(self.data), member_CM)
        small, unit = nn.initializers.normal(0.02), nn.initializers.normal(1.0)
        task_KD = self.param("task", unit, (num_tasks, self.width))
        token_CD = self.param("combination", small, (len(member_CM), self.width))

        query_BKD = jnp.broadcast_to(task_KD, (rows, *task_KD.shape))
        bias_TT = attention_bias(member_CM, owner_L, num_tasks, additive=False)
        q_BKD, z_BCD = self.encode(
            query_BKD, token_CD, x_BLD, ready_BC, mask_BL, bias_TT, train=train
        )
        z_BKCD = jnp.broadcast_to(z_BCD[:, None], (rows, num_tasks, *z_BCD.shape[1:]))
        counted_BC = ready_BC & (batch.weight > 0)[:, None]
        y_BKCD, moe = self.route(z_BKCD, q_BKD, counted_BC, batch, member_CM, train=train)
        aux = dict(moe.losses)
        if "covariance" in self.aux_weights:
            aux["covariance"] = covariance(z_BKCD, counted_BC)
        return self.fuse(q_BKD, y_BKCD, ready_BC), aux, moe

    def encode(
        self, query_BKD: Array, token_CD: Array, x_BLD: Array, readable_BC: Array, mask_BL: Array,
        bias_TT: Array, *, train: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Post-norm layers over the sequence [tasks | combinations | data].

        h = LN(x + drop(Attn x)), then LN(h + drop(MLP h)); nobody reads a token outside
        `readable_BC` and `mask_BL`. Returns the tasks' [B, K, D] and combinations' [B, C, D].
        """
        rows, num_tasks, combined = *query_BKD.shape[:2], len(token_CD)
        token_BCD = jnp.broadcast_to(token_CD, (rows, *token_CD.shape))
        x_BTD = jnp.concatenate([query_BKD, token_BCD, x_BLD], axis=1)
        every_BK = jnp.ones((rows, num_tasks), bool)
        mask_BT = jnp.concatenate([every_BK, readable_BC, mask_BL], axis=1)
        dropout = self.dropout

        def layer(i: int, x_BTD: Array) -> tuple[Array, None]:
            drop = Dropout(dropout, deterministic=not train, name=f"drop_{i}")
            attend = SelfAttention(self.num_heads, dropout=dropout, name=f"attention_{i}")
            a_BTD = attend(x_BTD[:, None], mask_BT[:, None], train=train, bias_TT=bias_TT)[:, 0]
            x_BTD = StackedLayerNorm(name=f"norm_{i}_0")(x_BTD + drop(a_BTD))
            y_BTD = MLP(self.mlp, dropout=dropout, name=f"mlp_{i}")(x_BTD, train=train)
            return StackedLayerNorm(name=f"norm_{i}_1")(x_BTD + drop(y_BTD)), None

        x_BTD, _ = repeat(layer, self.depth, x_BTD, scan=self.scan)
        return x_BTD[:, :num_tasks], x_BTD[:, num_tasks : num_tasks + combined]

    def route(
        self, z_BKCD: Array, q_BKD: Array, counted_BC: Array, batch: Batch, member_CM: np.ndarray,
        *, gate_init: Init | None = None, train: bool,
    ) -> tuple[Array, MoeAux]:  # fmt: skip
        """Experts for the combinations' tokens z, chosen by z and the task's token q.

        [B, K, C, D], 0 outside `counted_BC`; statistics are by modality, as reports read them: what
        a combination's token does counts for all its members.
        """
        rows, num_tasks, combined, width = z_BKCD.shape
        losses = tuple(sorted(set(self.aux_weights) - {"covariance"}))
        present_BM = batch.present(self.data)
        pattern_B = combination_index(present_BM, modulo=self.moe.num_experts)
        layer = MoE(self.moe, combined, losses=losses, gate_init=gate_init, name="layer_0")
        y_ND, aux = layer(
            rearrange(z_BKCD, "b k c d -> (b k c) d"),
            valid_N=jnp.repeat(counted_BC, num_tasks, axis=0).reshape(-1),
            modality_N=np.tile(np.arange(combined), rows * num_tasks),
            pattern_N=jnp.repeat(pattern_B, num_tasks * combined),
            query_NQ=jnp.repeat(q_BKD.reshape(-1, width), combined, axis=0),
            num_rows=rows,
            train=train,
        )
        stats = dict(aux.stats)
        for name in set(BY_COMBINATION) & set(stats):
            how = "...c,cm->...m" if name == "dropped_by_modality" else "...ce,cm->...me"
            stats[name] = jnp.einsum(how, stats[name], member_CM.astype(np.float32))
        return y_ND.reshape(z_BKCD.shape), aux.replace(stats=stats)

    def fuse(self, q_BKD: Array, y_BKCD: Array, ready_BC: Array) -> Array:
        """[q; U], U = LN(sum_c w_c y_c), w the softmax of v' tanh(W [q; y]) / temperature.

        Additive attention of a task over available combinations, [B, K, F].
        """
        wide, own = torch_uniform(2 * self.width), torch_uniform(self.width)
        choose = nn.Dense(self.width, use_bias=False, kernel_init=wide, name="choose")
        score = nn.Dense(1, use_bias=False, kernel_init=own, name="score")
        q_BKCD = jnp.broadcast_to(q_BKD[:, :, None], y_BKCD.shape)
        score_BKC = score(jnp.tanh(choose(jnp.concatenate([q_BKCD, y_BKCD], -1))))[..., 0]
        weight_BKC = softmax(score_BKC / self.temperature, ready_BC[:, None])
        mixed_BKD = jnp.einsum("bkc,bkcd->bkd", weight_BKC, y_BKCD)
        return jnp.concatenate([q_BKD, StackedLayerNorm(name="fused_norm")(mixed_BKD)], -1)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Losses of the rows' tasks plus `aux_weights` times the other losses."""
        return task_losses.objective(self.data, out, batch, self.aux_weights)
