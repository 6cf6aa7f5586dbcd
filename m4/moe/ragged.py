"""Grouped expert MLP by `jax.lax.ragged_dot`, where the compiler has a kernel for it.

Elsewhere it is a trap: XLA:CPU, XLA:GPU without a cuDNN fusion and older TPU compilers expand it,
or its weight gradient alone, to a dense matmul over all experts. `pays` compiles a small one for
the target and counts.

Letters: N tokens, K choices, A = K*N assignments, E experts, D input, F hidden, O output width.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from m4.moe.experts import ExpertParams
from m4.moe.grouped import Functions
from m4.moe.plan import Plan, sort_rows, unsort_rows
from m4.types import Array


def ragged_mlp(
    functions: Functions, x_ND: Array, plan: Plan, weights_NK: Array, params: ExpertParams
) -> Array:
    """Mixture of the chosen experts' outputs [N, O]; exact for any load."""
    expert_A = plan.expert_A[plan.order_A]
    x_AD = sort_rows(plan, x_ND)
    h_AF = _by_rows(x_AD, params.w1, plan.count_E)
    a_AF = functions.activation(h_AF + _rows_of(params.b1, expert_A))
    y_AO = lax.ragged_dot(a_AF, params.w2, plan.count_E) + _rows_of(params.b2, expert_A)
    y_AO = functions.output(y_AO) if functions.output else y_AO
    y_KNO = unsort_rows(plan, y_AO)
    return jnp.sum(y_KNO * weights_NK.T[..., None].astype(y_KNO.dtype), axis=0)


@jax.custom_vjp
def _by_rows(x_AD, w_EFD, count_E):
    """`ragged_dot` with the transposed weights, whose copy the backward pass does without."""
    return lax.ragged_dot(x_AD, w_EFD.swapaxes(1, 2), count_E)


def _by_rows_backward(residuals, g_AF):
    x_AD, w_EFD, count_E = residuals
    grouped = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    dw_EFD = lax.ragged_dot_general(g_AF, x_AD, count_E, grouped)
    return lax.ragged_dot(g_AF, w_EFD, count_E), dw_EFD, None


_by_rows.defvjp(lambda *args: (_by_rows(*args), args), _by_rows_backward)


def _rows_of(bias_EX, expert_A):
    """Each row's bias, zeros for expert E; the indices are sorted, and so is the gradient's sum."""
    return bias_EX.at[expert_A].get(mode="fill", fill_value=0, indices_are_sorted=True)


@functools.cache
def pays(device: jax.Device) -> bool:
    """Whether this device's compiler spends FLOPs on the rows of a group alone, backwards too."""
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
