"""M3H (Bertsimas and Ma, arXiv 2404.18975): tasks that attend to each other.

Reconstructed from public descriptions: neither the paper's equations nor the authors' code could
be read. Every modality becomes a vector, every task its own projection of all of them, and tasks
read each other by attention that balances self-exploitation (the identity) with cross-exploration
(the scores). There are no experts and no gate. `fidelity` chooses between three versions;
docs/methods/m3h.md lists every difference and says what is known:

- 'released': the one public head (rohankumar-1/multimodal-playground, commit e9e6e15, written by
  a third party) on HAIM's features with their quirks;
- 'paper': our reading of the paper's public descriptions;
- 'm4': the same with trained encoders, a non-linear task projection, a residual, and heads that
  read the statistics of series and tables.

Which tasks are in play is an input, so one compiled step serves every coalition of a task
interaction score (`m4.eval.tim`).

Letters: B rows, M modalities, D width of all modalities together, T = U tasks, d task width, N
columns of statistics, K clusters.
"""

import functools
from collections import Counter
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from m4 import task_losses
from m4.methods.m3h import clustering
from m4.methods.m3h.clustering import ClusterHead
from m4.methods.m3h.rows import RowEncoder
from m4.nn.heads import StackedHeads
from m4.nn.layers import StackedLayerNorm
from m4.nn.presence import MissingIndicator
from m4.nn.transformer import masked_softmax
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Target

FEATURES = {"released": "haim_released", "paper": "haim", "m4": "summary"}
CLUSTER_LOSSES = {
    "dec": clustering.dec,
    "mi": clustering.mutual_information,
    "kmeans": clustering.kmeans,
}
EPS = 1e-8  # of the third party's division


class M3H(nn.Module):
    """Any modalities; binary, multilabel, multiclass, regression, clustering and survival tasks.

    A clustering task has `dim` clusters and needs no labels; a survival task has `dim` intervals
    of time (`m4.task_losses.survival_loss`).
    """

    data: DataSpec
    fidelity: Literal["released", "paper", "m4"] = "m4"
    width: int = 64  # of an encoded modality
    task_width: int = 64
    dropout: float = 0.1
    norm: Literal["absmax", "max", "sqrt_d"] | None = None  # None: 'max' in 'released', else absmax
    identity: Literal["logit", "mix"] = "logit"
    alpha: float = 1.0  # cross-exploration
    beta: float | None = None  # self-exploitation; None: 1 in 'released', else 1 + log(tasks - 1)
    mix: float = 0.5  # share of the identity with identity='mix'
    balance: Literal["fixed", "learned"] = "fixed"  # of alpha, and of mix
    task_weighting: Literal["class", "uniform", "uncertainty"] | None = None  # None: 'uniform' in
    # 'released', else 'class': each kind of task weighs the same
    cluster: Literal["dec", "mi", "kmeans"] = "dec"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool, active_T: Array | None = None) -> Outputs:
        """Logits of every task; those of tasks outside `active_T` (bool[T]) mean nothing.

        Training needs the rng 'dropout'. A task outside `active_T` is neither read nor trained;
        a single active task gives a single-task model. `extra` holds 'task_attention' [B, T, U].
        Raises ValueError for modality kinds without an encoder and for unknown choices.
        """
        self._check()
        active_T = jnp.ones(len(self.data.tasks), bool) if active_T is None else active_T
        x_BD, wide_BN = self._encode(batch, train)
        released, m4 = self.fidelity == "released", self.fidelity == "m4"
        o_BTd, a_BTU = CrossTask(
            len(self.data.tasks),
            self.task_width,
            form="residual" if m4 else "linear",
            norm=self.norm or ("max" if released else "absmax"),
            identity=self.identity,
            alpha=self.alpha,
            beta=1.0 if released and self.beta is None else self.beta,
            mix=self.mix,
            balance=self.balance,
            name="cross_task",
        )(x_BD, active_T)
        extra = {"active": active_T, "task_attention": a_BTU}
        if self._weighting() == "uncertainty":
            init = nn.initializers.ones
            extra["sigma"] = self.param("sigma", init, (len(self.data.tasks),))
        return Outputs(self._heads(o_BTd, wide_BN, train), {}, {}, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Weighted mean of the active tasks' losses. Rows with nothing present count nowhere."""
        del step
        weight_B = batch.weight * batch.present(self.data).any(-1)
        batch = batch.replace(weight=weight_B)
        row_loss = functools.partial(self._row_loss, weight_B)
        terms = task_losses.task_losses(self.data, out.logits, batch, row_loss=row_loss)
        weight_T = task_weights(self.data.tasks, self._weighting()) * out.extra["active"]
        loss_T = jnp.stack([terms[name].value() for name in self.data.task_names])
        if "sigma" in out.extra:
            known_T = jnp.stack([terms[name].weight > 0 for name in self.data.task_names])
            loss_T = jnp.where(known_T, task_losses.uncertainty(loss_T, out.extra["sigma"]), 0.0)
        return jnp.sum(weight_T * loss_T) / jnp.maximum(weight_T.sum(), 1e-6), terms

    def _check(self):
        choices = {
            "fidelity": tuple(FEATURES),
            "norm": (None, "absmax", "max", "sqrt_d"),
            "identity": ("logit", "mix"),
            "balance": ("fixed", "learned"),
            "task_weighting": (None, "class", "uniform", "uncertainty"),
            "cluster": tuple(CLUSTER_LOSSES),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {allowed}")

    def _weighting(self) -> str:
        return self.task_weighting or ("uniform" if self.fidelity == "released" else "class")

    def _encode(self, batch, train) -> tuple[Array, Array]:
        """All modalities side by side; absent ones are zeros ('released') or learned."""
        present_BM = batch.present(self.data)
        encoder = RowEncoder(
            self.data, self.width, self.dropout, FEATURES[self.fidelity], name="encoder"
        )
        x_BMD, wide_BN = encoder(batch, train=train)
        if self.fidelity == "released":
            x_BMD = jnp.where(present_BM[..., None], x_BMD, 0.0)
        else:
            x_BMD = MissingIndicator(x_BMD.shape[1], name="missing")(x_BMD, present_BM)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="drop")
        return drop(rearrange(x_BMD, "b m d -> b (m d)")), wide_BN

    def _heads(self, o_BTd, wide_BN, train) -> dict[str, Array]:
        """Affine heads, those of clustering tasks centroids in the space of o."""
        logits, drop = {}, nn.Dropout(self.dropout, deterministic=not train, name="head_drop")
        plain = [t for t, task in enumerate(self.data.tasks) if task.kind != "cluster"]
        if plain:
            h_BTD = o_BTd[:, np.array(plain)]
            if self.fidelity == "m4":
                columns_BTN = jnp.repeat(drop(wide_BN)[:, None], len(plain), axis=1)
                h_BTD = jnp.concatenate([drop(h_BTD), columns_BTN], -1)
            heads = StackedHeads([self.data.tasks[t] for t in plain], name="heads")
            logits = heads(h_BTD)
        for t, task in enumerate(self.data.tasks):
            if task.kind == "cluster":
                logits[task.name] = ClusterHead(task.dim, name=f"cluster_{task.name}")(o_BTd[:, t])
        return logits

    def _row_loss(self, weight_B, task: TaskSpec, logits_BC: Array, target: Target):
        """As `task_losses.row_loss`, which 'm4' keeps for regression (Huber); others: squares."""
        if task.kind == "cluster":
            loss_B = CLUSTER_LOSSES[self.cluster](logits_BC, weight_B)
            return loss_B, jnp.ones_like(weight_B)
        if task.kind == "regression" and self.fidelity != "m4":
            mask_B = target.mask.astype(jnp.float32)
            value_BC = task_losses.standardise(task, target.value.reshape(logits_BC.shape))
            value_BC = jnp.where(mask_B[:, None] > 0, value_BC, 0.0)
            return 2 * optax.l2_loss(logits_BC, value_BC).mean(-1), mask_B
        return task_losses.row_loss(task, logits_BC, target)


class CrossTask(nn.Module):
    """e_t = W_t x, o_t = sum_u A_tu v_u: the query depends on the task alone, key and value also
    on the row. With form='residual' e_t = gelu(norm(W_t x)) and v_t is added to o_t.
    """

    num_tasks: int
    width: int
    form: Literal["linear", "residual"] = "linear"
    norm: Literal["absmax", "max", "sqrt_d"] = "absmax"
    identity: Literal["logit", "mix"] = "logit"
    alpha: float = 1.0
    beta: float | None = None
    mix: float = 0.5
    balance: Literal["fixed", "learned"] = "fixed"

    @nn.compact
    def __call__(self, x_BD: Array, active_T: Array) -> tuple[Array, Array]:
        """[B, D], bool[T] -> o [B, T, d] and A [B, T, U]."""
        rows, inputs = x_BD.shape
        shape = (self.num_tasks, inputs, self.width)
        project_TDd = self.param("projection", nn.initializers.normal(inputs**-0.5), shape)
        e_BTd = jnp.einsum("bi,tid->btd", x_BD, project_TDd)
        if self.form == "residual":
            e_BTd = nn.gelu(StackedLayerNorm(name="norm")(e_BTd))
        dense = lambda name: nn.Dense(self.width, use_bias=False, name=name)  # noqa: E731
        v_BTd = dense("value")(e_BTd)
        if self.num_tasks == 1:  # nothing to attend to: queries and keys would never learn
            return v_BTd, jnp.ones((rows, 1, 1))
        task_Td = self.param("task", nn.initializers.normal(1.0), (self.num_tasks, self.width))
        s_BTU = jnp.einsum("td,bud->btu", dense("query")(task_Td), dense("key")(e_BTd))
        s_BTU = normalise(s_BTU, active_T, norm=self.norm, width=self.width)
        alpha, mix = self._balance()
        a_BTU = task_attention(s_BTU, active_T, alpha=alpha, beta=self.beta, mix=mix)
        o_BTd = jnp.einsum("btu,bud->btd", a_BTU, v_BTd)
        return o_BTd + v_BTd if self.form == "residual" else o_BTd, a_BTU

    def _balance(self):
        """Learned: alpha = softplus(a) and mix = sigmoid(l)."""
        learned, mixed = self.balance == "learned", self.identity == "mix"
        start = nn.initializers.constant
        alpha, mix = self.alpha, self.mix if mixed else None
        if learned:
            alpha = jax.nn.softplus(self.param("alpha", start(np.log(np.expm1(alpha))), ()))
        if learned and mixed:
            mix = jax.nn.sigmoid(self.param("mix_logit", start(np.log(mix / (1 - mix))), ()))
        return alpha, mix


def normalise(s_BTU: Array, active_T: Array, *, norm: str, width: int) -> Array:
    """Scores over their largest magnitude among active tasks, per row ('absmax').

    'max' divides by the signed maximum, as the third party does: with few tasks it may be
    negative, which turns every score round, or close to 0. 'sqrt_d' divides by sqrt(width).
    """
    s_BTU = s_BTU.astype(jnp.float32)
    if norm == "sqrt_d":
        return s_BTU / width**0.5
    size_BTU = jnp.abs(s_BTU) if norm == "absmax" else s_BTU
    pair_TU = active_T[:, None] & active_T
    # Taken by index: the gradient of a maximum is 0 / 0 where recomputed scores round otherwise.
    flat_BN = rearrange(jnp.where(pair_TU, size_BTU, -jnp.inf), "b t u -> b (t u)")
    place_B1 = jnp.argmax(flat_BN, axis=-1)[:, None]
    top_B1 = jnp.take_along_axis(rearrange(size_BTU, "b t u -> b (t u)"), place_B1, axis=-1)
    return s_BTU / (top_B1[..., None] + EPS)


def task_attention(
    s_BTU: Array,
    active_T: Array,
    *,
    alpha: Array | float = 1.0,
    beta: Array | float | None = None,
    mix: Array | float | None = None,
) -> Array:
    """softmax_u(beta I + alpha S) over active tasks u; with `mix`, mix I + (1 - mix) softmax.

    `beta` None is 1 + log(T - 1) for T active tasks: at alpha = 0 a task then keeps e / (e + 1) =
    0.73 of its weight for itself whatever T is, as with two tasks and beta = 1. A constant beta
    leaves it e / (e + T - 1), which is 0.059 for 44 tasks.
    """
    eye_TU = jnp.eye(s_BTU.shape[-1])
    if mix is not None:
        return mix * eye_TU + (1 - mix) * masked_softmax(alpha * s_BTU, active_T)
    if beta is None:
        beta = 1.0 + jnp.log(jnp.maximum(active_T.sum() - 1, 1).astype(jnp.float32))
    return masked_softmax(beta * eye_TU + alpha * s_BTU, active_T)


def task_weights(tasks: tuple[TaskSpec, ...], weighting: str) -> np.ndarray:
    """f32[T]: the tasks' own weights, with 'class' over the number of tasks of their kind."""
    count = Counter(task.kind for task in tasks)
    share = [1.0 / count[t.kind] if weighting == "class" else 1.0 for t in tasks]
    return np.array([t.weight for t in tasks], np.float32) * np.array(share, np.float32)
