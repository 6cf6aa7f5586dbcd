"""ConfSMoE's gate (Zheng and others, 2025, arXiv 2505.19525): experts weighted by their confidence.

A softmax gate that learns from the task alone favours few experts. Here an expert's weight is its
confidence c, a sigmoid of what it makes of a token, which learns how probable the truth is by the
expert's own answer: (c - p)^2, with p = exp(-loss) of that answer. Nothing balances the load.

The release chooses experts by a noisy gate that has no gradient; here the most confident are
chosen, for which every expert sees every token. The answers learn from the tasks, where the
release's only learn to meet c. docs/methods/baselines.md lists the differences.

Letters: B rows, M modalities, E experts, K chosen ones, D width, N = B M tokens, C outputs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4 import task_losses
from m4.maths import exact
from m4.moe.losses import statistics
from m4.moe.routers import top_k
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import (
    AttentionBlock,
    Dropout,
    MissingIndicator,
    StackedDense,
    StackedLayerNorm,
    TaskHeads,
)
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs, Routing


class ConfSMoE(nn.Module):
    """Any number of modalities of any kind; tasks of the generic kinds."""

    data: DataSpec
    width: int = 64
    hidden: int = 64  # units of an expert
    experts: int = 4  # that see every token
    chosen: int = 2  # experts of a token
    num_heads: int = 4
    dropout: float = 0.2
    confidence: float = 1.0  # weight of what confidences and answers learn from

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs the rng 'dropout'.

        `extra` holds every expert's confidence, [B, E, M], and, by task, answers [B, E, M, dim].
        Raises ValueError for kinds without an encoder and for more chosen experts than there are.
        """
        check_fields(self, experts=1, chosen=1)
        if self.chosen > self.experts:
            raise ValueError(f"chosen={self.chosen} must be at most experts={self.experts}")
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, _ = summary(batch, train=train)
        x_BMD += self.param("type", nn.initializers.normal(0.02), x_BMD.shape[1:])
        present_BM = batch.present(self.data)
        mix = AttentionBlock(self.num_heads, 1, self.dropout, name="mix_0")
        x_BMD = mix(x_BMD[:, None], present_BM[:, None], train=train)[:, 0]

        h_BEMD = self._experts(StackedLayerNorm(name="norm")(x_BMD))
        normed = StackedLayerNorm(self.experts, name="confidence_norm")(h_BEMD)
        score_BEM = StackedDense(1, self.experts, name="confidence_of")(normed)[..., 0]
        routing, weight_BEM = self._chosen(score_BEM, present_BM)
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        x_BMD += drop(jnp.einsum("bem,bemd->bmd", weight_BEM, h_BEMD))

        x_BMD = StackedLayerNorm(name="last_norm")(x_BMD)
        x_BMD = MissingIndicator(x_BMD.shape[1], name="missing")(x_BMD, present_BM)
        row_BN = rearrange(x_BMD, "b m d -> b (m d)")
        h_BD = drop(nn.gelu(nn.Dense(self.width, name="head")(drop(row_BN))))
        logits = TaskHeads(self.data.tasks, name="heads")(h_BD)
        answers = TaskHeads(self.data.tasks, name="answers")
        extra = answers(h_BEMD)
        rows, num = present_BM.shape
        whose = {"modality_N": jnp.asarray(np.tile(np.arange(num), rows)), "num_modalities": num}
        stats = statistics(routing, None, train=train, num_rows=rows, **whose)
        extra = {f"answer_{name}": x for name, x in extra.items()}
        extra |= {"confidence": nn.sigmoid(score_BEM), "chosen": weight_BEM > 0}
        return Outputs(logits, {}, {"layer_0": MoeAux({}, stats)}, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The tasks', plus `confidence` times the answers' and the squared error of confidences."""
        del step
        loss, terms = task_losses.objective(self.data, out, batch, {})
        if not self.confidence:
            return loss, terms
        kept = out.extra["chosen"] & batch.present(self.data)[:, None]
        kept_BN = kept.reshape(len(kept), -1)
        confidence_BN = out.extra["confidence"].reshape(kept_BN.shape)
        answers = {
            name: out.extra[f"answer_{name}"].reshape(*kept_BN.shape, -1)
            for name in self.data.task_names
        }
        learn = task_losses.of_each(self.data, answers, batch, kept_BN)[0]

        def error(loss_BN: Array) -> Array:
            return jnp.square(confidence_BN - jax.lax.stop_gradient(jnp.exp(-loss_BN)))

        learn += task_losses.of_each(self.data, answers, batch, kept_BN, error)[0]
        return loss + self.confidence * learn, terms

    def _experts(self, x_BMD: Array) -> Array:
        """Every expert on every token, [B, E, M, D]."""
        every_BEMD = jnp.broadcast_to(x_BMD[:, None], (len(x_BMD), self.experts, *x_BMD.shape[1:]))
        h_BEMD = nn.gelu(StackedDense(self.hidden, self.experts, name="up")(every_BEMD))
        return StackedDense(self.width, self.experts, name="down")(h_BEMD)

    def _chosen(self, score_BEM: Array, present_BM: Array) -> tuple[Routing, Array]:
        """The K most confident experts of every token; their confidence [B, E, M], 0 elsewhere."""
        with exact():
            score_NE = jax.nn.log_sigmoid(rearrange(score_BEM, "b e m -> (b m) e"))
            routing = top_k(score_NE, present_BM.reshape(-1), k=self.chosen, normalise="none")
        one_hot_NKE = jax.nn.one_hot(routing.experts, self.experts)
        weight_NE = jnp.einsum("nk,nke->ne", routing.weights, one_hot_NKE)
        return routing, rearrange(weight_NE, "(b m) e -> b e m", b=len(present_BM))
