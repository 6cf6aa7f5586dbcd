"""Grouped expert MLP by `jax.lax.ragged_dot`, where the compiler has a kernel for it.

Elsewhere it is a trap: XLA:CPU, XLA:GPU without a cuDNN fusion and older TPU compilers expand it,
or its weight gradient alone, to a dense matmul over all experts. `pays` compiles a small one for
the target and counts.

Letters: N tokens, K choices, A = K*N assignments, E experts, D input, F hidden, O output width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from m4.moe.engine.grouped import Plan
from m4.moe.engine.rows import sort_rows, unsort_rows
from m4.moe.experts import ExpertParams, Functions
from m4.types import Array


def ragged_mlp(
    functions: Functions, x_ND: Array, plan: Plan, weights_NK: Array, params: ExpertParams
) -> Array:
    """Mixture of the chosen experts' outputs [N, O]; exact for any load."""
    expert_A = plan.expert_A[plan.order_A]
    y_AO = _mlp(functions.activation, sort_rows(plan, x_ND), expert_A, plan.count_E, params)
    y_KNO = unsort_rows(plan, functions.finish(y_AO))
    return jnp.sum(y_KNO * weights_NK.T[..., None].astype(y_KNO.dtype), axis=0)


def _experts(activation, x_AD, expert_A, count_E, params) -> Array:
    """The experts on rows sorted by expert; only x and the hidden rows wait for the gradient."""
    return _forward(activation, x_AD, expert_A, count_E, params)[0]


def _forward(activation, x_AD, expert_A, count_E, params):
    h_AF = lax.ragged_dot(x_AD, params.w1.swapaxes(1, 2), count_E)
    # The product lies behind w1's transposed copy in memory; what waits for the gradient must not,
    # or the copy's place is lost to the backward pass. Hence the sum goes into the biases' array,
    # made after the product, and is kept itself instead of its two terms.
    h_AF, b1_EF = lax.optimization_barrier((h_AF, params.b1))
    h_AF = lax.optimization_barrier(_rows_of(b1_EF, expert_A) + h_AF)
    y_AO = lax.ragged_dot(activation(h_AF), params.w2, count_E) + _rows_of(params.b2, expert_A)
    return y_AO, (x_AD, h_AF, expert_A, count_E, params)


def _backward(activation, residuals, dy_AO):
    x_AD, h_AF, expert_A, count_E, params = residuals
    a_AF, activation_vjp = jax.vjp(activation, h_AF)
    (dh_AF,) = activation_vjp(lax.ragged_dot(dy_AO, params.w2.swapaxes(1, 2), count_E))
    dx_AD = lax.ragged_dot(dh_AF, params.w1, count_E)
    grads = ExpertParams(
        w1=_outer(dh_AF, x_AD, count_E),
        b1=_sum_rows(dh_AF, expert_A, params.b1),
        w2=_outer(a_AF, dy_AO, count_E),
        b2=_sum_rows(dy_AO, expert_A, params.b2),
    )
    return dx_AD, None, None, grads


_mlp = jax.custom_vjp(_experts, nondiff_argnums=(0,))
_mlp.defvjp(_forward, _backward)


def _outer(left_AX, right_AY, count_E):
    """Sum over each expert's rows of the outer products, [E, X, Y]."""
    by_row = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return lax.ragged_dot_general(left_AX, right_AY, count_E, by_row)


def _rows_of(bias_EX, expert_A):
    """Each row's bias, zeros for expert E (a masked gather would be one array more)."""
    padded = jnp.concatenate([bias_EX, jnp.zeros_like(bias_EX[:1])])
    return padded.at[expert_A].get(mode="promise_in_bounds", indices_are_sorted=True)


def _sum_rows(rows_AX, expert_A, like_EX):
    zeros = jnp.zeros_like(like_EX)
    return zeros.at[expert_A].add(rows_AX, mode="drop", indices_are_sorted=True)


def pays(device: Any) -> bool:
    """Whether a `jax.Device`'s compiler spends FLOPs on a group's own rows alone, backwards too."""
    num_experts, rows, width = 8, 1024, 128

    def loss(x_AD, w_EDF, count_E):
        return jnp.sum(lax.ragged_dot(x_AD, w_EDF, count_E).astype(jnp.float32) ** 2)

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    compiled = (
        jax.jit(jax.grad(loss, (0, 1)))
        .lower(
            array((rows, width), jnp.bfloat16),
            array((num_experts, width, width), jnp.bfloat16),
            array((num_experts,), jnp.int32),
        )
        .compile()
    )
    flops = (compiled.cost_analysis() or {}).get("flops") or 0
    model = 3 * 2 * rows * width * width
    return model / 2 < flops < 2 * model  # no count (a kernel that hides it) is no proof
