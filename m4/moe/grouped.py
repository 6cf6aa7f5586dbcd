"""Grouped expert MLP: capacity slots by batched matmul, the rest by an exact block loop.

    y_n = sum_k w_nk output(activation(x_n W1_e + b1_e) W2_e + b2_e),  e = experts_nk

The first C assignments of every expert fill [E, C, D] and go through batched matmuls. The others
are processed in blocks of one expert's rows, by loops whose trip count is known only at run time:
exact for any load, and free when nothing overflows. The
weight gradient of the batched part is the start value of the loop, which adds to it in place:
with many experts the sum of two [E, D, F] arrays would cost as much as the gradient itself.
The program is the same for every E.

Letters: N tokens, K choices, A = K*N assignments, E experts, C capacity, D input, F hidden,
O output width, R rows of a block, P sorted positions (A and room for one block).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from m4.moe.experts import ExpertParams
from m4.moe.plan import Plan, slots, take_assignments, take_tokens
from m4.types import Array


@dataclass(frozen=True)
class Layout:
    """Static choices: slots per expert, and rows of a block beyond them (None: drop the rest)."""

    capacity: int
    block: int | None


@dataclass(frozen=True)
class Functions:
    """What an expert computes besides its two matmuls."""

    activation: Callable[[Array], Array]
    output: Callable[[Array], Array] | None = None


@flax.struct.dataclass
class Block:
    """Up to R consecutive sorted positions of one expert."""

    expert: Array  # i32[]
    position: Array  # i32[], of the first row
    assignment_R: Array  # i32[R], A past the expert's last row


def dropped_share(layout: Layout, plan: Plan) -> Array:
    """Share of the valid assignments that are not served, f32[]."""
    if layout.block:
        return jnp.zeros(())
    lost = jnp.sum(jnp.maximum(plan.count_E - layout.capacity, 0))
    return lost / jnp.maximum(plan.start_E[-1], 1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def grouped_mlp(
    layout: Layout,
    functions: Functions,
    x_ND: Array,
    plan: Plan,
    weights_NK: Array,
    params: ExpertParams,
) -> Array:
    """Mixture of the chosen experts' outputs [N, O]; differentiable in x, weights and params."""
    return _forward(layout, functions, x_ND, plan, weights_NK, params)[0]


def cast(params: ExpertParams, dtype) -> ExpertParams:
    """The parameters in the dtype of the computation."""
    return jax.tree.map(lambda p: p.astype(dtype), params)


def _forward(layout, functions, x_ND, plan, weights_NK, masters):
    params = cast(masters, x_ND.dtype)
    x_ECD = take_tokens(plan, x_ND, slots(plan, layout.capacity))
    h_ECF = jnp.einsum("ecd,edf->ecf", x_ECD, params.w1) + params.b1[:, None]
    a_ECF = functions.activation(h_ECF)
    y_ECO = jnp.einsum("ecf,efo->eco", a_ECF, params.w2) + params.b2[:, None]

    def block_forward(y_PO, block):
        x_RD = take_tokens(plan, x_ND, block.assignment_R)
        own = _of_expert(params, block.expert)
        y_RO = functions.activation(x_RD @ own.w1 + own.b1) @ own.w2 + own.b2
        return _put(y_PO, y_RO, block)

    y_PO = None
    if layout.block:
        y_PO = jnp.zeros((plan.size + layout.block, y_ECO.shape[-1]), y_ECO.dtype)
        y_PO = _fold_blocks(layout, plan, block_forward, y_PO)
    y_KNO = _outputs(layout, functions, plan, y_ECO, y_PO)
    # Not an einsum: XLA:CPU would transpose y and run N tiny matmuls.
    y_NO = jnp.sum(y_KNO * weights_NK.T[..., None].astype(y_KNO.dtype), axis=0)
    return y_NO, (x_ND, plan, weights_NK, masters, h_ECF, y_ECO, y_PO)


def _backward(layout, functions, residuals, g_NO):
    x_ND, plan, weights_NK, masters, h_ECF, y_ECO, y_PO = residuals
    params = cast(masters, x_ND.dtype)
    wide = jnp.promote_types(x_ND.dtype, jnp.float32)
    weight_A = weights_NK.T.reshape(-1).astype(g_NO.dtype)

    def raw_gradient(y, assignment):
        """Gradient at the experts' outputs `y` [..., O] of the given assignments [...]."""
        g = take_tokens(plan, g_NO, assignment)
        g *= weight_A.at[assignment].get(mode="fill", fill_value=0)[..., None]
        return jax.vjp(functions.output, y)[1](g)[0] if functions.output else g

    assignment_EC = slots(plan, layout.capacity)
    x_ECD = take_tokens(plan, x_ND, assignment_EC)
    dy_ECO = raw_gradient(y_ECO, assignment_EC)
    a_ECF, activation_vjp = jax.vjp(functions.activation, h_ECF)
    (dh_ECF,) = activation_vjp(jnp.einsum("eco,efo->ecf", dy_ECO, params.w2))
    dx_ECD = jnp.einsum("ecf,edf->ecd", dh_ECF, params.w1)
    grads = _weight_gradient("ecd,ecf->edf", x_ECD, dh_ECF, a_ECF, dy_ECO, wide)

    def block_backward(carry, block):
        dx_PD, grads = carry
        x_RD = take_tokens(plan, x_ND, block.assignment_R)
        own = _of_expert(params, block.expert)
        y_RO = lax.dynamic_slice_in_dim(y_PO, block.position, block.assignment_R.size)
        dy_RO = raw_gradient(y_RO, block.assignment_R)
        a_RF, activation_vjp = jax.vjp(functions.activation, x_RD @ own.w1 + own.b1)
        (dh_RF,) = activation_vjp(jnp.einsum("ro,fo->rf", dy_RO, own.w2))
        more = _weight_gradient("rd,rf->df", x_RD, dh_RF, a_RF, dy_RO, wide)
        grads = jax.tree.map(partial(_add_to_expert, expert=block.expert), grads, more)
        return _put(dx_PD, jnp.einsum("rf,df->rd", dh_RF, own.w1), block), grads

    dx_PD = None
    if layout.block:
        dx_PD = jnp.zeros((plan.size + layout.block, x_ND.shape[1]), dx_ECD.dtype)
        dx_PD, grads = _fold_blocks(layout, plan, block_backward, (dx_PD, grads))
    dx_ND = jnp.sum(take_assignments(plan, dx_ECD, dx_PD), axis=0).astype(x_ND.dtype)
    y_KNO = _outputs(layout, functions, plan, y_ECO, y_PO)
    dweights_NK = jnp.sum(y_KNO * g_NO, axis=-1, dtype=wide).T
    grads = jax.tree.map(lambda grad, master: grad.astype(master.dtype), grads, masters)
    return dx_ND, None, dweights_NK.astype(weights_NK.dtype), grads


grouped_mlp.defvjp(_forward, _backward)


def _outputs(layout, functions, plan, y_ECO, y_PO):
    """Every assignment's expert output, [K, N, O]; 0 for the unserved."""
    y_KNO = take_assignments(plan, y_ECO, y_PO)
    if functions.output is None:
        return y_KNO
    served_A = plan.valid_A if layout.block else plan.valid_A & (plan.rank_A < layout.capacity)
    return jnp.where(served_A.reshape(*y_KNO.shape[:2], 1), functions.output(y_KNO), 0)


def _weight_gradient(spec, x, dh, a, dy, dtype):
    """Gradient of the expert parameters from rows that are the second last dimension."""
    return ExpertParams(
        w1=jnp.einsum(spec, x, dh, preferred_element_type=dtype),
        b1=jnp.sum(dh, axis=-2, dtype=dtype),
        w2=jnp.einsum(spec, a, dy, preferred_element_type=dtype),
        b2=jnp.sum(dy, axis=-2, dtype=dtype),
    )


def _of_expert(params, expert):
    return jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, expert, keepdims=False), params)


def _add_to_expert(stacked, part, expert):
    # Not `.at[expert].add`: a scatter, which walks the elements one by one on a CPU.
    own = lax.dynamic_index_in_dim(stacked, expert, keepdims=False)
    return lax.dynamic_update_index_in_dim(stacked, own + part, expert, axis=0)


def _put(buffer_PX, rows_RX, block):
    return lax.dynamic_update_slice_in_dim(
        buffer_PX, rows_RX.astype(buffer_PX.dtype), block.position, axis=0
    )


def _fold_blocks(layout, plan, body, carry):
    """Fold `body(carry, block)` over the assignments of every expert beyond its capacity.

    A block writes all of its R rows. Where it is longer than the expert's rows, its tail hits
    rows that follow; blocks run in ascending order, so that their owners overwrite it.
    """
    rows = layout.block
    number_E = -(-jnp.maximum(plan.count_E - layout.capacity, 0) // rows)
    end_E = jnp.cumsum(number_E)
    most = min(plan.size // rows + plan.num_experts, plan.size)
    expert_B = jnp.searchsorted(end_E, jnp.arange(most), side="right").astype(jnp.int32)
    order = jnp.concatenate([plan.order_A, jnp.full(rows, plan.size, jnp.int32)])

    def step(state):
        i, carry = state
        expert = expert_B[i]
        nth = i - end_E[expert] + number_E[expert]
        position = plan.first_E[expert] + layout.capacity + nth * rows
        inside_R = position + jnp.arange(rows) < plan.start_E[expert + 1]
        assignment_R = lax.dynamic_slice_in_dim(order, position, rows)
        block = Block(expert, position, jnp.where(inside_R, assignment_R, plan.size))
        return i + 1, body(carry, block)

    return lax.while_loop(lambda state: state[0] < end_E[-1], step, (jnp.int32(0), carry))[1]
