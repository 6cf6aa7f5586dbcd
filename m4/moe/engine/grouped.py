"""Grouped expert MLP: capacity slots by batched matmul, the rest by an exact block loop.

    y_n = sum_k w_nk output(activation(x_n W1_e + b1_e) W2_e + b2_e),  e = experts_nk

The first C assignments of every expert fill [E, C, D] and go through batched matmuls (`batched`).
The others are processed in blocks of one expert's rows, by loops whose trip count is known only at
run time: exact for any load, and free when nothing overflows. What the batched part computed,
outputs and gradients, is the start value of the loops, which add to it in place: with many experts
the sum of two [E, D, F] arrays would cost as much as the gradient itself.
The program is the same for every E.

Letters: N tokens, K choices, A = K*N assignments, E experts, C capacity, D input, F hidden,
O output width, R rows of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from m4.moe.engine.batched import FORMS
from m4.moe.engine.plan import Plan, slots, take_assignments, take_tokens
from m4.moe.experts import ExpertParams
from m4.types import Array


@dataclass(frozen=True)
class Layout:
    """Static choices: slots per expert, rows of a block beyond them (None: drop the rest), form."""

    capacity: int
    block: int | None
    form: str = "rows"  # a key of `batched.FORMS`


@dataclass(frozen=True)
class Functions:
    """What an expert computes besides its two matmuls."""

    activation: Callable[[Array], Array]
    output: Callable[[Array], Array] | None = None

    def finish(self, y: Array) -> Array:
        """`output`, or nothing."""
        return self.output(y) if self.output else y


@flax.struct.dataclass
class Block:
    """Up to R assignments of one expert."""

    expert: Array  # i32[]
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
    y_ECO, saved = FORMS[layout.form].forward(x_ECD, params, functions.activation)
    y_KNO = take_assignments(plan, functions.finish(y_ECO))
    # Not an einsum: XLA:CPU would transpose y and run N tiny matmuls.
    y_NO = _sum_choices(y_KNO * weights_NK.T[..., None].astype(y_KNO.dtype))
    weight_A = weights_NK.T.reshape(-1).astype(y_NO.dtype)

    def block_forward(y_NO, block):
        own = _of_expert(params, block.expert)
        x_RD = take_tokens(plan, x_ND, block.assignment_R)
        y_RO = functions.finish(functions.activation(x_RD @ own.w1.T + own.b1) @ own.w2 + own.b2)
        return _add_to_tokens(plan, y_NO, y_RO * _weights(weight_A, block.assignment_R), block)

    if layout.block:
        y_NO = _fold_blocks(layout, plan, block_forward, y_NO)
    return y_NO, (x_ND, plan, weights_NK, masters, y_ECO, saved)


def _backward(layout, functions, residuals, g_NO):
    x_ND, plan, weights_NK, masters, y_ECO, saved = residuals
    params = cast(masters, x_ND.dtype)
    wide = jnp.promote_types(x_ND.dtype, jnp.float32)
    weight_A = weights_NK.T.reshape(-1).astype(g_NO.dtype)

    def output_gradient(y, assignment):
        """Gradients at the experts' outputs `y` [..., O] and the weights [...] of assignments."""
        z, finish_vjp = jax.vjp(functions.finish, y)
        g = take_tokens(plan, g_NO, assignment)
        return finish_vjp(g * _weights(weight_A, assignment))[0], jnp.sum(z * g, -1, dtype=wide)

    dy_ECO, dweight_EC = output_gradient(y_ECO, slots(plan, layout.capacity))
    dx_ECD, grads = FORMS[layout.form].backward(saved, dy_ECO, params, functions.activation, wide)
    dx_ND = _sum_choices(take_assignments(plan, dx_ECD))
    dweight_A = take_assignments(plan, dweight_EC[..., None]).reshape(-1)

    def block_backward(carry, block):
        dx_ND, dweight_A, grads = carry
        own = _of_expert(params, block.expert)
        x_RD = take_tokens(plan, x_ND, block.assignment_R)
        a_RF, activation_vjp = jax.vjp(functions.activation, x_RD @ own.w1.T + own.b1)
        dy_RO, dweight_R = output_gradient(a_RF @ own.w2 + own.b2, block.assignment_R)
        (dh_RF,) = activation_vjp(dy_RO @ own.w2.T)
        more = ExpertParams(
            w1=jnp.matmul(dh_RF.T, x_RD, preferred_element_type=wide),
            b1=jnp.sum(dh_RF, axis=0, dtype=wide),
            w2=jnp.matmul(a_RF.T, dy_RO, preferred_element_type=wide),
            b2=jnp.sum(dy_RO, axis=0, dtype=wide),
        )
        grads = jax.tree.map(partial(_add_to_expert, expert=block.expert), grads, more)
        dweight_A = dweight_A.at[block.assignment_R].set(dweight_R, mode="drop")
        return _add_to_tokens(plan, dx_ND, dh_RF @ own.w1, block), dweight_A, grads

    if layout.block:
        carry = (dx_ND, dweight_A, grads)
        dx_ND, dweight_A, grads = _fold_blocks(layout, plan, block_backward, carry)
    dweights_NK = dweight_A.reshape(plan.num_choices, -1).T.astype(weights_NK.dtype)
    grads = jax.tree.map(lambda grad, master: grad.astype(master.dtype), grads, masters)
    return dx_ND.astype(x_ND.dtype), None, dweights_NK, grads


grouped_mlp.defvjp(_forward, _backward)


def _sum_choices(rows_KNX):
    """Sum over K, written out: XLA:CPU calls a library for a reduction, which costs more."""
    return reduce(jnp.add, rows_KNX)


def _weights(weight_A, assignment):
    return weight_A.at[assignment].get(mode="fill", fill_value=0)[..., None]


def _of_expert(params, expert):
    return jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, expert, keepdims=False), params)


def _add_to_expert(stacked, part, expert):
    # Not `.at[expert].add`: a scatter, which walks the elements one by one on a CPU.
    own = lax.dynamic_index_in_dim(stacked, expert, keepdims=False)
    return lax.dynamic_update_index_in_dim(stacked, own + part, expert, axis=0)


def _add_to_tokens(plan, sum_NX, rows_RX, block):
    num_tokens = plan.size // plan.num_choices
    token_R = jnp.where(block.assignment_R < plan.size, block.assignment_R % num_tokens, num_tokens)
    return sum_NX.at[token_R].add(rows_RX.astype(sum_NX.dtype), mode="drop")


def _fold_blocks(layout, plan, body, carry):
    """Fold `body(carry, block)` over the assignments of every expert beyond its capacity."""
    rows = layout.block
    number_E = -(-jnp.maximum(plan.count_E - layout.capacity, 0) // rows)
    end_E = jnp.cumsum(number_E)
    order = jnp.concatenate([plan.order_A, jnp.full(rows, plan.size, jnp.int32)])

    def step(state):
        i, carry = state
        expert = jnp.sum(end_E <= i, dtype=jnp.int32)
        nth = i - end_E[expert] + number_E[expert]
        position = plan.first_E[expert] + layout.capacity + nth * rows
        inside_R = position + jnp.arange(rows) < plan.start_E[expert + 1]
        assignment_R = lax.dynamic_slice_in_dim(order, position, rows)
        block = Block(expert, jnp.where(inside_R, assignment_R, plan.size))
        return i + 1, body(carry, block)

    return lax.while_loop(lambda state: state[0] < end_E[-1], step, (jnp.int32(0), carry))[1]
