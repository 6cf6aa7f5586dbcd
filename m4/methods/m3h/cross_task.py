"""Attention between tasks: each reads the others' view of the row.

It balances self-exploitation (the identity) with cross-exploration (the scores).

Letters: B rows, D width of all modalities together, T = U tasks, d task width.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import softmax
from m4.nn.layers import StackedLayerNorm
from m4.types import Array

EPS = 1e-8  # of the third party's division
Norm = Literal["absmax", "max", "sqrt_d"]
Identity = Literal["logit", "mix"]
Balance = Literal["fixed", "learned"]
Form = Literal["linear", "residual"]


class CrossTask(nn.Module):
    """e_t = W_t x, o_t = sum_u A_tu v_u: the query depends on the task alone, key and value also
    on the row. With form='residual' e_t = gelu(norm(W_t x)) and v_t is added to o_t.
    """

    num_tasks: int
    width: int
    form: Form = "linear"
    norm: Norm = "absmax"
    identity: Identity = "logit"
    alpha: float = 1.0
    beta: float | None = None
    mix: float = 0.5
    balance: Balance = "fixed"

    @nn.compact
    def __call__(self, x_BD: Array, active_T: Array) -> tuple[Array, Array]:
        """[B, D], bool[T] -> o [B, T, d] and A [B, T, U]."""
        rows, inputs = x_BD.shape
        shape = (self.num_tasks, inputs, self.width)
        project_TDd = self.param("projection", nn.initializers.normal(inputs**-0.5), shape)
        e_BTd = jnp.einsum("bi,tid->btd", x_BD, project_TDd)
        if self.form == "residual":
            e_BTd = nn.gelu(StackedLayerNorm(name="norm")(e_BTd))

        def dense(name: str) -> nn.Dense:
            return nn.Dense(self.width, use_bias=False, name=name)

        v_BTd = dense("value")(e_BTd)
        if self.num_tasks == 1:  # nothing to attend to: queries and keys would never learn
            return v_BTd, jnp.ones((rows, 1, 1))
        task_Td = self.param("task", nn.initializers.normal(1.0), (self.num_tasks, self.width))
        s_BTU = jnp.einsum("td,bud->btu", dense("query")(task_Td), dense("key")(e_BTd))
        s_BTU = normalise(s_BTU, active_T, norm=self.norm, width=self.width)
        alpha, mix = self._shares()
        a_BTU = task_attention(s_BTU, active_T, alpha=alpha, beta=self.beta, mix=mix)
        o_BTd = jnp.einsum("btu,bud->btd", a_BTU, v_BTd)
        return o_BTd + v_BTd if self.form == "residual" else o_BTd, a_BTU

    def _shares(self):
        """Alpha and mix; learned ones are softplus(a) and sigmoid(l)."""
        start = nn.initializers.constant
        alpha, mix = self.alpha, self.mix if self.identity == "mix" else None
        if self.balance == "learned":
            alpha = jax.nn.softplus(self.param("alpha", start(np.log(np.expm1(alpha))), ()))
            if mix is not None:
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
        return mix * eye_TU + (1 - mix) * softmax(alpha * s_BTU, active_T)
    if beta is None:
        beta = 1.0 + jnp.log(jnp.maximum(active_T.sum() - 1, 1).astype(jnp.float32))
    return softmax(beta * eye_TU + alpha * s_BTU, active_T)
