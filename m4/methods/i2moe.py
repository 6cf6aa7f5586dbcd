"""I2MoE (Xin and others, ICML 2025, arXiv 2505.19190): experts for kinds of interaction.

Section 3: M experts for what one modality alone knows, one for synergy, one for redundancy, each a
fusion network of all modalities. Nobody labels interactions; an expert is told by what happens to
its output when a modality is taken away:

- unique to m: without m it moves further than without any other (triplet loss, margin 1);
- synergy: without any modality it is another (cosine similarity is a loss);
- redundancy: without any modality it is the same (1 - cosine similarity).

A network that sees all modalities weighs the experts' answers. Here a modality is taken away as in
life, by its learned vector for "absent" (the paper puts random numbers), in rows that have it and
another one. A fusion network's first layer is a sum over modalities, so that M views of a row cost
no more products than one. docs/methods/baselines.md lists the differences.

Letters: B rows, M modalities, E = M + 2 experts, D width, H hidden units, V = 1 + M views of a row:
whole, then without each modality.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import softmax
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.fusion import HeadsOfEach, Hidden, mean_of_present
from m4.nn.layers import Dropout, StackedDense, StackedLayerNorm
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs

small = nn.initializers.normal(0.02)


class I2MoE(nn.Module):
    """Any number of modalities of any kind; tasks of the generic kinds."""

    data: DataSpec
    width: int = 64
    hidden: int = 64  # units of an expert, and of what weighs the experts
    dropout: float = 0.2
    margin: float = 1.0  # of the triplet loss
    aux_weights: Mapping[str, float] = FrozenDict({"interaction": 0.01})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]; the experts' weights are `extra['experts']`, [B, E].

        Training needs the rng 'dropout'. Raises ValueError for modality kinds without an encoder.
        """
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD = StackedLayerNorm(name="norm")(summary(batch, train=train)[0])
        present_BM, num = batch.present(self.data), x_BMD.shape[1]
        absent_MD = self.param("absent", small, x_BMD.shape[1:])
        x_BMD = jnp.where(present_BM[..., None], x_BMD, absent_MD)
        drop = Dropout(self.dropout, deterministic=not train, name="drop")

        first = StackedDense((num + 2) * self.hidden, num, bias_init=None, name="first")
        parts_BEMH = rearrange(first(drop(x_BMD)), "b m (e h) -> b e m h", e=num + 2)
        none_EMH = rearrange(first(absent_MD[None]), "1 m (e h) -> e m h", e=num + 2)
        h_BEVH = parts_BEMH.sum(2, keepdims=True)
        views = train and bool(self.aux_weights)
        if views:
            h_BEVH = jnp.concatenate([h_BEVH, h_BEVH - parts_BEMH + none_EMH], 2)
        bias_EH = self.param("first_bias", nn.initializers.zeros, (num + 2, self.hidden))
        second = StackedDense(self.width, num + 2, name="second")
        h_BEVD = second(nn.gelu(h_BEVH + bias_EH[:, None]))

        each = HeadsOfEach(self.data.tasks, name="heads")(drop(nn.gelu(h_BEVD[:, :, 0])))
        weigh = Hidden(self.hidden, 1, self.dropout, name="weigh")
        row_BN = rearrange(x_BMD, "b m d -> b (m d)")
        weight_BE = softmax(nn.Dense(num + 2, name="weights")(weigh(row_BN, train=train)))
        logits = {n: mean_of_present(x, weight_BE[..., None]) for n, x in each.items()}
        aux = dict.fromkeys(self.aux_weights, jnp.zeros(()))
        if views:
            counted_BM = present_BM & (batch.weight > 0)[:, None]
            aux["interaction"] = interaction(h_BEVD, counted_BM, self.margin)
        return Outputs(logits, aux, extra={"experts": weight_BE})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The losses of the tasks plus the weighted interaction loss."""
        del step
        return task_losses.objective(self.data, out, batch, self.aux_weights)


def interaction(h_BEVD: Array, present_BM: Array, margin: float) -> Array:
    """Mean over experts of their losses, each a mean over rows and modalities that count.

    A modality counts in a row that has it and another one.
    """
    whole_BED, less_BEMD = h_BEVD[:, :, 0], h_BEVD[:, :, 1:]
    counts_BM = present_BM & (present_BM.sum(-1, keepdims=True) > 1)
    num = counts_BM.shape[1]

    unique_BMD, less_BMMD = whole_BED[:, :num, None], less_BEMD[:, :num]
    distance_BMM = jnp.sqrt(jnp.square(unique_BMD - less_BMMD).sum(-1) + 1e-12)
    without_own_BM1 = jnp.einsum("bmm->bm", distance_BMM)[..., None]
    triplet_BMM = nn.relu(distance_BMM - without_own_BM1 + margin)
    other_BMM = counts_BM[:, :, None] & counts_BM[:, None] & ~jnp.eye(num, dtype=bool)
    losses = num * mean(triplet_BMM, other_BMM)

    cosine_B2M = jnp.einsum("bed,bemd->bem", unit(whole_BED[:, num:]), unit(less_BEMD[:, num:]))
    losses += mean(cosine_B2M[:, 0], counts_BM) + mean(1.0 - cosine_B2M[:, 1], counts_BM)
    return losses / (num + 2)


def mean(x: Array, mask: Array) -> Array:
    """Over what `mask` keeps; 0 where that is nothing."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def unit(x: Array) -> Array:
    """Vectors of length 1, and of 0 for 0."""
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
