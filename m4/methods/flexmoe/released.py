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


class ReleasedFlexMoE(nn.Module):
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
    attention: Literal["doubled", "residual"] = "doubled"  # the release's, or a skip connection
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
        """Without a skip: a = drop(Attn(LN x)), h = a + drop(a), then h + drop(F(LN h))."""
        norm = [StackedLayerNorm(name=f"norm_{i}_{n}") for n in range(2)]
        drop = [
            nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}_{n}")
            for n in range(3)
        ]
        init = torch_uniform(self.width)
        attend = SelfAttention(
            self.num_heads, dropout=self.dropout, kernel_init=init, qkv_bias_init=None,
            bias_init=init, name=f"attention_{i}",
        )  # fmt: skip
        every_BMT = jnp.ones(x_BTD.shape[:2], bool)[:, None]  # tokens of the bank are read
        a_BTD = drop[0](attend(norm[0](x_BTD)[:, None], every_BMT, train=train)[:, 0])
        h_BTD = x_BTD + a_BTD if self.attention == "residual" else a_BTD + drop[2](a_BTD)
        theirs = self.moe.gate == "linear" and self.moe.router in ("noisy_top_k", "top_k")
        y_BTD, routed = feed_forward(
            i, norm[1](h_BTD), present_BM, routable_B, self._softmax_last(),
            completeness.chosen(self.aux_weights), dropout=self.dropout, kernel_init=per_both,
            gate_init=per_experts if theirs else None, train=train,
        )  # fmt: skip
        return h_BTD + drop[1](y_BTD), routed

    def _softmax_last(self) -> MoEOptions:
        """The largest k scores, then their softmax, also with k = 1."""
        if self.moe.router != "noisy_top_k":
            return self.moe
        return self.moe.with_router(normalise="after")

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses."""
        return task_losses.objective(self.data, out, batch, self.aux_weights)


# --- initial values -----------------------------------------------------------------------------


def per_experts(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """U(-1 / sqrt(E), 1 / sqrt(E)) on [D, E]: the fan is computed on the wrong dimension."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def per_both(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """U(-b, b), b = 1 / sqrt(inputs * outputs): the fan of a stack of experts' 3-D weight."""
    bound = (shape[-1] * shape[-2]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
