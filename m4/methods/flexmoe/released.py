"""Flex-MoE as released (UNITES-Lab/flex-moe, commit 2168807): its defects and initial values too.

Attention has no skip connection, experts start with weights some 16 times too small, and the gate
starts colder the more experts there are. `paper.py` holds the paper's equations; golden numbers of
the authors' modules fix this file (tests/methods/test_flexmoe_released.py).

Letters: B rows, M modalities, P tokens of a modality, T = M P, D width, E experts, N routed tokens,
F features of the heads.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import torch_uniform
from m4.methods.flexmoe.patches import PatchTransformer
from m4.methods.flexmoe.transformer import Routed
from m4.moe.options import MoEOptions
from m4.specs import TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Target

ADNI = ("image", "genomic", "clinical", "biospecimen")  # in the release's order


class ReleasedFlexMoE(PatchTransformer):
    """Fuses up to 12 modalities of kinds series, vectors, table, codes, text, signal and image."""

    attention: Literal["doubled", "residual"] = "doubled"  # the release's, or a skip connection
    class_weights: Mapping[str, tuple[float, ...]] = FrozenDict({})  # task -> weight per class

    @nn.nowrap
    def layer(
        self, i: int, x_BTD: Array, present_BM: Array, routable_B: Array, train: bool
    ) -> Routed:
        """Without a skip: a = drop(Attn(LN x)), h = a + drop(a), then h + drop(F(LN h))."""
        norm, drop = self.norms(i), self.drops(i, 3, train)
        a_BTD = drop[0](self.attend(i, norm[0](x_BTD), train, torch_uniform(self.width)))
        h_BTD = x_BTD + a_BTD if self.attention == "residual" else a_BTD + drop[2](a_BTD)
        theirs = self.moe.gate == "linear" and self.moe.router in ("noisy_top_k", "top_k")
        y_BTD, routed = self.feed_forward(
            i, norm[1](h_BTD), present_BM, routable_B, self._softmax_last(), train,
            kernel_init=per_both, gate_init=per_experts if theirs else None,
        )  # fmt: skip
        return h_BTD + drop[1](y_BTD), routed

    def full_modalities(self) -> tuple[str, ...]:
        """Of ADNI the release's bank has all four, also where a part of them is chosen."""
        names = self.data.modality_names
        return ADNI if {*names} <= {*ADNI} else names

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """As the others', with class weights: the mean is over the labels' weights."""
        batch = task_losses.counted(self.data, batch)
        row_loss = weighted(self.class_weights)
        terms = task_losses.task_losses(
            self.data, out.logits, batch, row_loss=row_loss, by_name=True
        )
        return task_losses.total(self.data, terms, out.aux_losses, self.aux_weights), terms

    def _softmax_last(self) -> MoEOptions:
        """The largest k scores, then their softmax, also with k = 1."""
        if self.moe.router != "noisy_top_k":
            return self.moe
        return self.moe.with_router(normalise="after")


def weighted(class_weights: Mapping[str, tuple[float, ...]]) -> task_losses.RowLoss:
    """`task_losses.row_loss` whose rows weigh as their classes, as `torch.nn.CrossEntropyLoss`'."""

    def loss(task: TaskSpec, logits: Array, target: Target) -> tuple[Array, Array]:
        loss_B, known_B = task_losses.row_loss(task, logits, target)
        if task.name in class_weights:
            label_B = jnp.where(known_B > 0, target.value.reshape(len(loss_B)), 0).astype(jnp.int32)
            known_B = known_B * jnp.array(class_weights[task.name])[label_B]
        return loss_B, known_B

    return loss


# --- initial values -----------------------------------------------------------------------------


def per_experts(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """U(-1 / sqrt(E), 1 / sqrt(E)) on [D, E]: the fan is computed on the wrong dimension."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def per_both(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """U(-b, b), b = 1 / sqrt(inputs * outputs): the fan of a stack of experts' 3-D weight."""
    bound = (shape[-1] * shape[-2]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
