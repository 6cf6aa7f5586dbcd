"""FlexCare as published (Xu et al., KDD 2024): we had the abstract and the framework figure.

Tokens of all modalities, a token for every combination of them and a token per task pass through a
transformer whose mask lets a combination read its own modalities only. The tokens of available
combinations go to experts that a gate chooses by combination and task; the task's token weighs the
results. No token but the task's own depends on the task, so one pass answers all. What the figure
does not show is as in the authors' code (`released.py`); docs/methods/flexcare.md lists every
difference.

Letters: B rows, M modalities, C combinations, K tasks, L data tokens, T = K + C + L, D width,
F features of a head.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import torch_uniform
from m4.methods.flexcare.combinations import available, members, route
from m4.methods.flexcare.fusion import covariance, fuse
from m4.methods.flexcare.sequence import attention_bias, encode
from m4.methods.flexcare.tokens import data_tokens
from m4.moe.options import MoEOptions
from m4.nn.layers import TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class PaperFlexCare(nn.Module):
    """Any number of modalities, any tasks, all answered in one pass.

    Published sizes are the defaults. Of M modalities there are 2^M - 1 combinations, or with
    `max_size` the full set and those of at most so many.
    """

    data: DataSpec
    moe: MoEOptions = MoEOptions("task_additive", "noisy_top_k", num_experts=10, activation="relu")
    width: int = 128
    depth: int = 4
    num_heads: int = 2
    mlp: int = 512  # hidden width of the transformer
    dropout: float = 0.1
    temperature: float = 0.2  # of the fusion
    max_size: int | None = None  # of a combination but the full one; None: any
    patch: int = 16  # pixels of an image's token
    aux_weights: Mapping[str, float] = FrozenDict(covariance=0.5, importance=0.01, load=0.01)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for impossible fields, kinds without tokens and too many combinations.
        """
        check_fields(self, depth=1)
        num_tasks, rows = len(self.data.tasks), batch.uid.shape[0]
        member_CM = members(len(self.data.modalities), self.max_size)
        present_BM = batch.present(self.data)
        ready_BC = available(present_BM, member_CM)

        # Tokens.
        x_BLD, mask_BL, owner_L = data_tokens(self.data, batch, self.width, self.patch)
        small, unit = nn.initializers.normal(0.02), nn.initializers.normal(1.0)
        task_KD = self.param("task", unit, (num_tasks, self.width))
        token_CD = self.param("combination", small, (len(member_CM), self.width))

        # Transformer.
        query_BKD = jnp.broadcast_to(task_KD, (rows, *task_KD.shape))
        bias_TT = attention_bias(member_CM, owner_L, num_tasks, additive=False)
        q_BKD, z_BCD = encode(
            query_BKD, token_CD, x_BLD, ready_BC, mask_BL, bias_TT, depth=self.depth,
            num_heads=self.num_heads, mlp=self.mlp, dropout=self.dropout, train=train,
        )  # fmt: skip
        z_BKCD = jnp.broadcast_to(z_BCD[:, None], (rows, num_tasks, *z_BCD.shape[1:]))

        # Experts, fusion, heads.
        counted_BC = ready_BC & (batch.weight > 0)[:, None]
        y_BKCD, moe = route(
            z_BKCD, q_BKD, counted_BC, present_BM, member_CM, self.moe, self.aux_weights,
            train=train,
        )  # fmt: skip
        fused_BKD = fuse(q_BKD, y_BKCD, ready_BC, temperature=self.temperature)
        h_BKF = jnp.concatenate([q_BKD, fused_BKD], -1)
        heads = TaskHeads(self.data.tasks, kernel_init=torch_uniform(), name="heads")
        logits = heads({name: h_BKF[:, k] for k, name in enumerate(self.data.task_names)})
        aux = dict(moe.losses)
        if "covariance" in self.aux_weights:
            aux["covariance"] = covariance(z_BKCD, counted_BC)
        return Outputs(logits, aux, {"layer_0": moe})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Losses of the rows' tasks plus `aux_weights` times the other losses."""
        return task_losses.objective(self.data, out, batch, self.aux_weights)
