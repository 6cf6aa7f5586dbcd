"""Flex-MoE (Yun et al., NeurIPS 2024): a bank of learned tokens for whatever a row lacks.

Every modality becomes P tokens; those of an absent modality are read from a bank indexed by
(combination of the present ones, absent one). Attention over all tokens and a sparse mixture of
experts follow; a loss sends the tokens of incomplete rows to their combination's expert.
`fidelity` chooses between three versions; docs/methods/flexmoe.md lists every difference:

- 'released': what the authors' code computes, with its initial values;
- 'paper': the equations of the paper;
- 'm4': tokens from statistics over time, residual attention, any number of modalities.

Letters: B rows, M modalities, P tokens of a modality, T = M P, D width, E experts, N = B T
routed tokens, F features, N statistics in `wide_BN`.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.methods.flexmoe import bank, completeness
from m4.methods.flexmoe.patches import PatchTokens, flatten
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn import presence
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.encoders.volume import VolumeEncoder
from m4.nn.heads import TaskHeads
from m4.nn.layers import StackedLayerNorm, uniform_init
from m4.nn.transformer import MLP, SelfAttention
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

ROOM = "m4.methods.flexmoe.completeness"
# Name in `aux_weights` -> function; any other name is looked up in `m4.moe.losses`.
LOSSES = {
    "router": f"{ROOM}:cross_entropy",
    "importance": f"{ROOM}:importance",
    "load": f"{ROOM}:load",
}
PAPER_LOSSES = LOSSES | {
    "importance": f"{ROOM}:importance_of_others",
    "load": f"{ROOM}:load_of_others",
}
RELEASED = {"linear": f"{ROOM}:linear", "noisy_top_k": f"{ROOM}:noisy_top_k"}
ATTENTION = {"released": "doubled", "paper": "post_norm", "m4": "residual"}
TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
gelu = partial(jax.nn.gelu, approximate=False)


class FlexMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table, codes and image.

    Published sizes are the defaults (ADNI); MIMIC-IV has num_experts 32, top_k 3.
    """

    data: DataSpec
    fidelity: Literal["released", "paper", "m4"] = "m4"
    moe: MoEOptions = MoEOptions("linear", "noisy_top_k", num_experts=16, top_k=4, hidden=256)
    width: int = 128
    depth: int = 1  # layers: sparse, dense, sparse, ...
    num_heads: int = 4
    num_patches: int = 16  # tokens of a modality; m4 has one
    dropout: float = 0.5
    attention: Literal["auto", "doubled", "post_norm", "residual"] = "auto"  # see `_layer`
    bank: Literal["auto", "full", "factorised"] = "auto"
    bank_rank: int = 16
    aux_weights: Mapping[str, float] = FrozenDict(
        {"router": 0.01, "importance": 0.01, "load": 0.01}
    )

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for modality kinds without an encoder, for unknown choices and, unless
        m4, for fewer experts than combinations of modalities.
        """
        self._check()
        present_BM = batch.present(self.data)
        tokens = self._statistics if self.fidelity == "m4" else self._patches
        x_BMPD, wide_BN = tokens(batch, train)
        x_BMPD = self._complete(x_BMPD, present_BM)
        x_BMPD += self.param("position", nn.initializers.zeros, x_BMPD.shape[1:])
        moe, routable_B = {}, present_BM.any(-1) & (batch.weight > 0)
        for i in range(self.depth):
            x_BMPD = self._layer(i, x_BMPD, present_BM, routable_B, moe, train)
        h_BD = self._read(x_BMPD, wide_BN, train)
        original = {} if self.fidelity == "m4" else {"two_logits": True, "kernel_init": TORCH}
        heads = TaskHeads(self.data.tasks, **original, name="heads")
        aux = {
            name: sum(layer.losses[path] for layer in moe.values())
            for name, path in self._losses().items()
        }
        return Outputs(heads(dict.fromkeys(self.data.task_names, h_BD)), aux, moe)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses plus `aux_weights` times the routing losses.

        A row without any present modality counts nowhere, whatever its weight.
        """
        del step
        some_B = batch.present(self.data).any(-1)
        batch = batch.replace(weight=batch.weight * some_B)
        terms = task_losses.task_losses(self.data, out.logits, batch)
        return task_losses.total(self.data, terms, out.aux_losses, self.aux_weights), terms

    def _check(self):
        choices = {
            "fidelity": tuple(ATTENTION),
            "attention": ("auto", *ATTENTION.values()),
            "bank": ("auto", "full", "factorised"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {allowed}")
        for field, low in (("depth", 1), ("num_patches", 1), ("bank_rank", 1)):
            if getattr(self, field) < low:
                raise ValueError(f"{field}={getattr(self, field)} must be at least {low}")
        num = len(self.data.modalities)
        if self.fidelity != "m4" and self.moe.num_experts < 2**num - 1:
            raise ValueError(
                f"moe.num_experts={self.moe.num_experts} must be at least 2^{num} - 1 = {2**num - 1}:"
                " every combination of modalities has its expert (fidelity='m4' lets them share)"
            )

    def _losses(self) -> dict[str, str]:
        known = PAPER_LOSSES if self.fidelity == "paper" else LOSSES
        return {name: known.get(name, name) for name in sorted(self.aux_weights)}

    # tokens

    def _statistics(self, batch, train) -> tuple[Array, Array]:
        """One token per modality, and the statistics themselves for the head."""
        encoder = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, wide_BN = encoder(batch, train=train)
        return x_BMD[:, :, None], wide_BN

    def _patches(self, batch, train) -> tuple[Array, None]:
        """Features of a modality in P patches, as in the authors' `PatchEmbeddings`."""
        tokens = []
        for m in self.data.modalities:
            stream = batch.inputs[m.name]
            if m.kind == "image":
                encoder = VolumeEncoder(self.width, name=f"{m.name}_volume")
                x_BF = encoder(stream, train=train)
            else:
                x_BF = flatten(m, stream, hours=self.data.hours)
            tokens.append(PatchTokens(self.width, self.num_patches, name=m.name)(x_BF))
        return jnp.stack(tokens, axis=1), None

    def _complete(self, x_BMPD, present_BM) -> Array:
        """Tokens of absent modalities from the bank; there is nothing to tell with one modality."""
        num = present_BM.shape[-1]
        if num == 1:
            return jnp.where(present_BM[..., None, None], x_BMPD, 0.0)
        scale = 0.02 if self.fidelity == "m4" else 1.0
        if self.bank == "factorised" or (self.bank == "auto" and num > bank.FULL_LIMIT):
            return bank.FactorisedBank(self.bank_rank, scale, name="bank")(x_BMPD, present_BM)
        if num > 12:
            raise ValueError(
                f"bank='full' of {num} modalities has {2**num - 1} rows; choose bank='factorised'"
            )
        return bank.FullBank(scale, name="bank")(x_BMPD, present_BM)

    # layers

    def _layer(self, i, x_BMPD, present_BM, routable_B, moe, train) -> Array:
        """Attention over the tokens of a row, then experts (even layers) or an MLP (odd ones).

        'residual': the usual pre-norm block. 'post_norm': the original transformer's, as the
        paper draws it. 'doubled': pre-norm without the input: a + drop(a) of the attention a.
        """
        attention = ATTENTION[self.fidelity] if self.attention == "auto" else self.attention
        x_BTD = rearrange(x_BMPD, "b m p d -> b (m p) d")
        norm = [StackedLayerNorm(name=f"norm_{i}_{n}") for n in range(2)]
        drop = [
            nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}_{n}")
            for n in range(3)
        ]

        def attend(x_BTD):
            init = uniform_init(self.width)
            original = {"kernel_init": init, "qkv_bias_init": None, "bias_init": init}
            block = SelfAttention(
                self.num_heads,
                dropout=self.dropout,
                **({} if self.fidelity == "m4" else original),
                name=f"attention_{i}",
            )
            mask_BMT = jnp.ones(x_BTD.shape[:2], bool)[:, None]  # tokens of the bank are read
            return drop[0](block(x_BTD[:, None], mask_BMT, train=train)[:, 0])

        def forward(x_BTD):
            if i % 2 == 0:
                y_BTD, moe[f"layer_{i // 2}"] = self._route(
                    f"layer_{i // 2}", x_BTD, present_BM, routable_B, train
                )
            else:
                mlp = MLP(self.moe.hidden, 1, self.dropout, gelu, name=f"mlp_{i}")
                y_BTD = mlp(x_BTD, train=train)
            return drop[1](y_BTD)

        if attention == "post_norm":
            h_BTD = norm[0](x_BTD + attend(x_BTD))
            y_BTD = norm[1](h_BTD + forward(h_BTD))
        else:
            a_BTD = attend(norm[0](x_BTD))
            h_BTD = x_BTD + a_BTD if attention == "residual" else a_BTD + drop[2](a_BTD)
            y_BTD = h_BTD + forward(norm[1](h_BTD))
        return y_BTD.reshape(x_BMPD.shape)

    def _route(self, name, x_BTD, present_BM, routable_B, train) -> tuple[Array, MoeAux]:
        """The mixture of experts on all tokens, those from the bank included."""
        rows, num = present_BM.shape
        per_modality = x_BTD.shape[1] // num
        released = self.fidelity == "released"
        options = dataclasses.replace(
            self.moe,
            gate=RELEASED.get(self.moe.gate, self.moe.gate) if released else self.moe.gate,
            router=RELEASED.get(self.moe.router, self.moe.router) if released else self.moe.router,
            router_options=FrozenDict({**self._normalise(), **self.moe.router_options}),
        )
        y_ND, aux = MoE(
            options,
            losses=tuple(self._losses().values()),
            num_modalities=num,
            kernel_init=completeness.per_both if released else None,
            name=name,
        )(
            rearrange(x_BTD, "b t d -> (b t) d"),
            valid_N=jnp.repeat(routable_B, x_BTD.shape[1]),
            modality_N=np.tile(np.repeat(np.arange(num), per_modality), rows),
            pattern_N=jnp.repeat(self._pattern(present_BM), x_BTD.shape[1]),
            num_rows=rows,
            train=train,
        )
        return y_ND.reshape(x_BTD.shape), aux

    def _normalise(self) -> dict[str, str]:
        """Eq. 1 of the paper: the softmax of all scores, then the largest k of it."""
        softmax_first = self.fidelity == "paper" and self.moe.router in ("top_k", "noisy_top_k")
        return {"normalise": "before"} if softmax_first else {}

    def _pattern(self, present_BM) -> Array:
        """Each row's expert: 0 if complete, else its combination's, modulo the experts but 0."""
        others = self.moe.num_experts - 1
        index_B = presence.combination_index(present_BM, modulo=others)
        return jnp.where(present_BM.all(-1), 0, 1 + (index_B - 1) % others)

    def _read(self, x_BMPD, wide_BN, train) -> Array:
        """What the heads read: the mean token of every modality; m4 adds a layer and statistics."""
        if self.fidelity != "m4":
            return rearrange(x_BMPD.mean(2), "b m d -> b (m d)")
        x_BMPD = StackedLayerNorm(name="norm")(x_BMPD)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        h_BD = nn.Dense(self.width, name="head")(drop(rearrange(x_BMPD, "b m p d -> b (m p d)")))
        return jnp.concatenate([drop(nn.gelu(h_BD)), drop(wide_BN)], -1)
