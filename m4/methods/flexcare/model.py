"""FlexCare (Xu et al., KDD 2024): one token per combination of modalities, one per task.

Tokens of all modalities, a token for every combination of them and a token per task pass through
a transformer whose mask lets a combination read its own modalities only. The tokens of available
combinations go to experts that a gate chooses by combination and task; the task's token weighs
the results. `fidelity` chooses between three versions; docs/methods/flexcare.md lists every
difference:

- 'released': what the authors' code computes; training asks one task of every row;
- 'paper': the published framework, with a mask that masks and all tasks in one pass;
- 'm4': one token per modality from statistics, which the heads read, too.

Letters: B rows, M modalities, C combinations, K tasks (of one pass), L data tokens, T = K + C + L,
D width, N = B K C routed tokens, E experts.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.methods.flexcare.tokens import TokenEncoder
from m4.moe import gates
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.heads import TaskHeads
from m4.nn.layers import Dropout, StackedLayerNorm, uniform_init
from m4.nn.presence import combination_index, combinations
from m4.nn.transformer import MLP, SelfAttention, masked_softmax
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

LIMIT = 256  # combinations
FIDELITIES = ("released", "paper", "m4")
MASKS = {"released": "additive_one", "paper": "strict", "m4": "strict"}
BY_COMBINATION = ("by_modality", "by_row", "dropped_by_modality")
TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Zeros = Annotated[Array, nn.initializers.zeros]


class FlexCare(nn.Module):
    """Any number of modalities, any tasks. Published sizes are the defaults.

    `max_size` bounds the combinations to the full set and those of at most so many modalities;
    without it there are 2^M - 1.
    """

    data: DataSpec
    fidelity: Literal["released", "paper", "m4"] = "m4"
    mask_mode: Literal["auto", "additive_one", "strict"] = "auto"
    moe: MoEOptions = MoEOptions("task_additive", "noisy_top_k", num_experts=10, activation="relu")
    width: int = 128
    depth: int = 4
    num_heads: int = 2
    mlp: int = 512  # hidden width of the transformer
    dropout: float = 0.1
    temperature: float = 0.2  # of the fusion
    max_size: int | None = None
    patch: int = 16  # pixels of an image's token
    aux_weights: Mapping[str, float] = FrozenDict(
        {"covariance": 0.5, "importance": 0.01, "load": 0.01}
    )

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        With the additive mask other tokens see the task's, so every task needs a pass of its
        own: evaluation makes all, training one, for the task of each row (`batch.task`; a row
        without takes that of its place in the batch), and other tasks' logits mean nothing.
        Raises ValueError for unknown choices, kinds without tokens and too many combinations.
        """
        member_CM, additive = self._check()
        present_BM, num_tasks = batch.present(self.data), len(self.data.tasks)
        ready_BC = (present_BM[:, None] | ~member_CM).all(-1) & present_BM.any(-1)[:, None]
        x_BLD, mask_BL, owner_L, wide_BN = self._tokens(batch, train)
        embed_KD = self.param("task", nn.initializers.normal(1.0), (num_tasks, self.width))
        rows, task_B, shared_C = batch.uid.shape[0], batch.task, ready_BC
        if not additive:
            query_BKD = jnp.broadcast_to(embed_KD, (rows, *embed_KD.shape))
        elif train:
            place_B = jnp.arange(rows) % num_tasks
            task_B = jnp.where(batch.task < 0, place_B, batch.task)
            query_BKD = embed_KD[task_B][:, None]
        else:  # a pass per task: rows become (row, task)
            query_BKD = jnp.tile(embed_KD, (rows, 1))[:, None]
            x_BLD, mask_BL, shared_C = (
                jnp.repeat(x, num_tasks, axis=0) for x in (x_BLD, mask_BL, ready_BC)
            )
        bias_TT = attention_bias(member_CM, owner_L, query_BKD.shape[1], additive=additive)
        q_BKD, z_BCD = self._encode(query_BKD, x_BLD, shared_C, mask_BL, bias_TT, train)
        if additive and not train:
            q_BKD = q_BKD.reshape(rows, num_tasks, -1)
            z_BKCD = rearrange(z_BCD, "(b k) c d -> b k c d", k=num_tasks)
        else:
            z_BKCD = jnp.broadcast_to(z_BCD[:, None], (rows, q_BKD.shape[1], *z_BCD.shape[1:]))
        counted_BC = ready_BC & (batch.weight > 0)[:, None]
        pattern_B = combination_index(present_BM, modulo=self.moe.num_experts)
        y_BKCD, moe = self._route(z_BKCD, q_BKD, counted_BC, pattern_B, member_CM, train)
        fused_BKD = self._fuse(q_BKD, y_BKCD, ready_BC)
        logits = self._heads(q_BKD, fused_BKD, wide_BN, train)
        aux = {name: moe.losses[name] for name in self._routed_losses()}
        if "covariance" in self.aux_weights:
            aux["covariance"] = self._covariance(z_BKCD, counted_BC)
        return Outputs(logits, aux, {"layer_0": moe}, {"task": task_B})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses of the rows' tasks plus `aux_weights` times the other losses.

        As released, the other losses are scaled by the weight of the batch's task.
        """
        del step
        some_B = batch.present(self.data).any(-1)
        batch = batch.replace(weight=batch.weight * some_B, task=out.extra["task"])
        terms = task_losses.task_losses(self.data, out.logits, batch)
        aux = out.aux_losses
        if self.fidelity == "released":
            weight_K = jnp.array([task.weight for task in self.data.tasks])
            total = jnp.sum(batch.weight * weight_K[batch.task])
            scale = total / jnp.maximum(jnp.sum(batch.weight), 1.0)
            aux = {name: scale * value for name, value in aux.items()}
        return task_losses.total(self.data, terms, aux, self.aux_weights), terms

    def _check(self) -> tuple[np.ndarray, bool]:
        """Members of every combination, bool[C, M], and whether the mask is the additive one."""
        for field, allowed in (("fidelity", FIDELITIES), ("mask_mode", ("auto", *MASKS.values()))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {allowed}")
        num = len(self.data.modalities)
        size = num if self.max_size is None else self.max_size
        if size < 1:
            raise ValueError(f"max_size={self.max_size} must be at least 1")
        count = 1 + sum(math.comb(num, s) for s in range(1, min(size, num - 1) + 1))
        if count > LIMIT:
            raise ValueError(
                f"{num} modalities have {count} combinations of up to {size} or all, at most"
                f" {LIMIT} are possible; choose a smaller max_size than {size}"
            )
        mode = MASKS[self.fidelity] if self.mask_mode == "auto" else self.mask_mode
        return combinations(num, max_size=size), mode == "additive_one"

    def _routed_losses(self):
        return tuple(name for name in sorted(self.aux_weights) if name != "covariance")

    def _tokens(self, batch, train) -> tuple[Array, Array, np.ndarray, Array | None]:
        """Data tokens, their mask, their modalities i[L], and statistics for the heads."""
        if self.fidelity == "m4":
            summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
            x_BMD, wide_BN = summary(batch, train=train)
            x_BMD += self.param("position", nn.initializers.normal(0.02), x_BMD.shape[1:])
            return x_BMD, batch.present(self.data), np.arange(x_BMD.shape[1]), wide_BN
        parts = [
            TokenEncoder(m, self.width, self.data.hours, self.patch, name=m.name)(
                batch.inputs[m.name]
            )
            for m in self.data.modalities
        ]
        owner_L = np.repeat(np.arange(len(parts)), [p.x.shape[1] for p in parts])
        x_BLD = jnp.concatenate([p.x for p in parts], axis=1)
        return x_BLD, jnp.concatenate([p.mask for p in parts], axis=1), owner_L, None

    def _encode(self, query_BKD, x_BLD, ready_BC, mask_BL, bias_TT, train) -> tuple[Array, Array]:
        """Post-norm transformer over [tasks | combinations | data]: tasks and combinations."""
        rows, num = query_BKD.shape[:2]
        combined = ready_BC.shape[1]
        init = (
            nn.initializers.zeros if self.fidelity == "released" else nn.initializers.normal(0.02)
        )
        token_CD = self.param("combination", init, (combined, self.width))
        token_BCD = jnp.broadcast_to(token_CD, (rows, combined, self.width))
        readable_BC = ready_BC
        if self.fidelity == "released":  # only single modalities' tokens are ever masked
            single_C = np.arange(combined) >= combined - len(self.data.modalities)
            readable_BC = ready_BC | ~single_C
        x_BTD = jnp.concatenate([query_BKD, token_BCD, x_BLD], axis=1)
        mask_BT = jnp.concatenate([jnp.ones((rows, num), bool), readable_BC, mask_BL], axis=1)
        for i in range(self.depth):
            drop = Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")
            attend = SelfAttention(self.num_heads, dropout=self.dropout, name=f"attention_{i}")
            a_BTD = attend(x_BTD[:, None], mask_BT[:, None], train=train, bias_TT=bias_TT)[:, 0]
            x_BTD = StackedLayerNorm(name=f"norm_{i}_0")(x_BTD + drop(a_BTD))
            mlp = MLP(self.mlp, dropout=self.dropout, name=f"mlp_{i}")
            x_BTD = StackedLayerNorm(name=f"norm_{i}_1")(x_BTD + drop(mlp(x_BTD, train=train)))
        return x_BTD[:, :num], x_BTD[:, num : num + combined]

    def _route(self, z_BKCD, q_BKD, ready_BC, pattern_B, member_CM, train) -> tuple[Array, MoeAux]:
        """Experts for the tokens of available combinations; others become 0."""
        rows, num_tasks, combined = z_BKCD.shape[:3]
        options = self.moe
        if self.moe.gate == "task_additive" and self.fidelity == "released":
            gate = "m4.methods.flexcare.model:zero_gate"
            options = dataclasses.replace(self.moe, gate=gate)
        y_ND, aux = MoE(
            options,
            losses=self._routed_losses(),
            num_modalities=combined,
            name="layer_0",
        )(
            rearrange(z_BKCD, "b k c d -> (b k c) d"),
            valid_N=jnp.repeat(ready_BC, num_tasks, axis=0).reshape(-1),
            modality_N=np.tile(np.arange(combined), rows * num_tasks),
            pattern_N=jnp.repeat(pattern_B, num_tasks * combined),
            query_NQ=jnp.repeat(q_BKD.reshape(-1, self.width), combined, axis=0),
            num_rows=rows,
            train=train,
        )
        # Reports count by modality: what a combination's token does counts for all its members.
        for name in set(BY_COMBINATION) & set(aux.stats):
            how = "...c,cm->...m" if name == "dropped_by_modality" else "...ce,cm->...me"
            aux.stats[name] = jnp.einsum(how, aux.stats[name], member_CM.astype(np.float32))
        return y_ND.reshape(z_BKCD.shape), aux

    def _fuse(self, q_BKD, y_BKCD, ready_BC) -> Array:
        """The task's token weighs the combinations' (additive attention)."""
        dense = lambda out, init, name: nn.Dense(  # noqa: E731
            out, use_bias=False, kernel_init=uniform_init(init), name=name
        )
        q_BKCD = jnp.broadcast_to(q_BKD[:, :, None], y_BKCD.shape)
        pair = jnp.concatenate([q_BKCD, y_BKCD], -1)
        h_BKCD = jnp.tanh(dense(self.width, 2 * self.width, "choose")(pair))
        score_BKC = dense(1, self.width, "score")(h_BKCD)[..., 0]
        weight_BKC = masked_softmax(score_BKC / self.temperature, ready_BC[:, None])
        mixed_BKD = jnp.einsum("bkc,bkcd->bkd", weight_BKC, y_BKCD)
        return StackedLayerNorm(name="fused_norm")(mixed_BKD)

    def _heads(self, q_BKD, fused_BKD, wide_BN, train) -> dict[str, Array]:
        """Every task reads its own token and mixture, and in m4 the statistics."""
        h_BKD = jnp.concatenate([q_BKD, fused_BKD], -1)
        num, single = len(self.data.tasks), h_BKD.shape[1] == 1
        h = [h_BKD[:, 0 if single else k] for k in range(num)]
        kernel_init = TORCH
        if self.fidelity == "m4":
            drop = nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
            h, wide_BN = [drop(x) for x in h], drop(wide_BN)
            h = [jnp.concatenate([x, wide_BN], -1) for x in h]
            kernel_init = nn.initializers.lecun_normal()
        heads = TaskHeads(self.data.tasks, kernel_init=kernel_init, name="heads")
        return heads(dict(zip(self.data.task_names, h, strict=True)))

    def _covariance(self, z_BKCD, ready_BC) -> Array:
        """Squared covariances between different combinations' tokens, over features.

        Released: of all tokens, divided by (C - 1)^2 pairs. Otherwise: the mean over pairs of
        available combinations.
        """
        combined, width = z_BKCD.shape[2:]
        z_BKCD = z_BKCD.astype(jnp.float32) - z_BKCD.mean(-1, keepdims=True)
        cov_BKCC = jnp.einsum("bkcd,bked->bkce", z_BKCD, z_BKCD) / max(width - 1, 1)
        row_B = ready_BC.any(-1)
        pair_BCC = jnp.broadcast_to(row_B[:, None, None], (*ready_BC.shape, combined))
        if self.fidelity != "released":
            pair_BCC = ready_BC[:, :, None] & ready_BC[:, None]
        pair_BCC = pair_BCC & ~np.eye(combined, dtype=bool)
        total = jnp.sum(jnp.where(pair_BCC[:, None], cov_BKCC**2, 0.0)) / z_BKCD.shape[1]
        released = row_B.sum() * max(combined - 1, 1) ** 2
        count = released if self.fidelity == "released" else pair_BCC.sum()
        return total / jnp.maximum(count, 1)


def attention_bias(
    member_CM: np.ndarray, owner_L: np.ndarray, num_tasks: int, *, additive: bool
) -> np.ndarray:
    """f32[T, T] over [tasks | combinations | data]: 0 where a query (row) may read a key.

    Elsewhere -inf, or with `additive` the release's +1, which favours what it should forbid.
    A task reads everything but other tasks; a combination itself and its members' data tokens;
    a data token those of its modality.
    """
    combined = len(member_CM)
    tasks, sets = slice(num_tasks), slice(num_tasks, num_tasks + combined)
    data = slice(num_tasks + combined, None)
    size = num_tasks + combined + len(owner_L)
    allowed_TT = np.zeros((size, size), bool)
    allowed_TT[tasks] = True
    allowed_TT[tasks, tasks] = np.eye(num_tasks, dtype=bool)
    allowed_TT[sets, sets] = np.eye(combined, dtype=bool)
    allowed_TT[sets, data] = member_CM[:, owner_L]
    allowed_TT[data, data] = owner_L[:, None] == owner_L
    return np.where(allowed_TT, 0.0, 1.0 if additive else -np.inf).astype(np.float32)


def zero_gate(x_ND: Array, w_DE: Zeros, query_QE: Zeros, *, query_NQ: Array) -> Array:
    """`gates.task_additive`, which the release starts at zero."""
    return gates.task_additive(x_ND, w_DE, query_QE, query_NQ=query_NQ)
