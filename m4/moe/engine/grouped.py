"""Grouped expert MLP: capacity slots by batched matmul, the rest by an exact block loop.

    y_n = sum_k w_nk output(activation(x_n W1_e + b1_e) W2_e + b2_e),  e = experts_nk

The assignments are sorted by expert once. The first C of every expert fill its slots, [E, C, D],
and go through batched matmuls; rows are always gathered, in the backward pass too, since a
scatter-add of rows is slow on every backend. The others are processed in blocks of one expert's
rows, by loops whose trip count is known only at run time: exact for any load, and free when nothing
overflows. What the batched part computed, outputs and gradients, is the start value of the loops,
which add to it in place: with many experts the sum of two [E, D, F] arrays would cost as much as
the gradient itself. The program is the same for every E.

Assignment a = k*N + n is choice k of token n.

Letters: N tokens, K choices, A = K*N assignments, E experts, C slots of an expert, D input, F
hidden, O output, X any width, R rows of a block.
"""

from dataclasses import dataclass
from functools import partial, reduce

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from m4.moe.experts import FORMS, ExpertParams, Functions, cast
from m4.types import Array

# --- the plan: where every assignment goes --------------------------------------------------------


class Plan(flax.struct.PyTreeNode):
    """Assignments in the order of their experts; those of expert E (none) come last."""

    order_A: Array  # i32, the assignment at every sorted position
    position_A: Array  # i32, the sorted position of every assignment
    expert_A: Array  # i32, the expert of every assignment
    start_E: Array  # i32[E + 1], first sorted position of every expert
    num_choices: int = flax.struct.field(pytree_node=False)
    skip: Array | int = 0  # the first so many of every expert are served elsewhere

    @property
    def size(self) -> int:
        """Number A of assignments."""
        return self.order_A.size

    @property
    def num_experts(self) -> int:
        """Number E of experts."""
        return self.start_E.size - 1

    @property
    def count_E(self) -> Array:
        """Assignments per expert."""
        return jnp.maximum(jnp.diff(self.start_E) - self.skip, 0)

    @property
    def first_E(self) -> Array:
        """Sorted position of every expert's first assignment."""
        return self.start_E[:-1] + self.skip

    @property
    def rank_A(self) -> Array:
        """Place of every assignment in its expert's queue; negative if skipped."""
        return self.position_A - self.first_E.at[self.expert_A].get(mode="clip")

    @property
    def valid_A(self) -> Array:
        """Whether the assignment names an expert."""
        return self.expert_A < self.num_experts


def make_plan(experts_NK: Array, num_experts: int, *, priority_N: Array | None = None) -> Plan:
    """Queue the assignments of every expert: first choices first, then in token order.

    With `priority_N` tokens of higher priority come first within a choice (batch-prioritised
    routing, Riquelme et al. 2021, appendix C).
    """
    num_tokens, num_choices = experts_NK.shape
    size = num_tokens * num_choices
    arange_A = jnp.arange(size, dtype=jnp.int32)
    expert_A = experts_NK.T.reshape(-1).astype(jnp.int32)
    queue_A = arange_A
    if priority_N is not None:
        token_N = jnp.argsort(-priority_N).astype(jnp.int32)
        queue_A = (num_tokens * jnp.arange(num_choices)[:, None] + token_N).reshape(-1)
    key_A = expert_A[queue_A]
    if (num_experts + 1) * size < 2**31:  # a single 32-bit key sorts five times faster on a CPU
        packed_A = jnp.sort(key_A * size + arange_A)
        sorted_A, order_A = packed_A // size, queue_A[packed_A % size]
    else:
        sorted_A, order_A = lax.sort((key_A, queue_A), num_keys=1, is_stable=True)
    position_A = jnp.zeros_like(order_A).at[order_A].set(arange_A, unique_indices=True)
    start_E = jnp.searchsorted(sorted_A, jnp.arange(num_experts + 1, dtype=jnp.int32))
    return Plan(order_A, position_A, expert_A, start_E.astype(jnp.int32), num_choices)


def slots(plan: Plan, capacity: int) -> Array:
    """The assignment in every slot, i32[E, C]; A in a free one."""
    c_C = jnp.arange(capacity, dtype=jnp.int32)
    assignment_EC = plan.order_A.at[plan.first_E[:, None] + c_C].get(mode="clip")
    return jnp.where(c_C < plan.count_E[:, None], assignment_EC, plan.size)


def take_tokens(plan: Plan, x_NX: Array, assignment: Array) -> Array:
    """Token rows of the given assignments; zeros for A, so that no token leaks into a free slot."""
    num_tokens = plan.size // plan.num_choices
    token = jnp.where(assignment < plan.size, assignment % num_tokens, num_tokens)
    return x_NX.at[token].get(mode="fill", fill_value=0)


def take_assignments(plan: Plan, slots_ECX: Array) -> Array:
    """Every assignment's row, [K, N, X]; zeros for those beyond the C slots of their expert."""
    num_experts, capacity, width = slots_ECX.shape
    in_slot_A = plan.valid_A & (plan.rank_A >= 0) & (plan.rank_A < capacity)
    slot_A = jnp.where(in_slot_A, plan.expert_A * capacity + plan.rank_A, num_experts * capacity)
    flat_SX = slots_ECX.reshape(num_experts * capacity, width)
    rows_AX = flat_SX.at[slot_A].get(mode="fill", fill_value=0)
    return rows_AX.reshape(plan.num_choices, -1, width)


# --- the experts on their slots and blocks --------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Static choices: slots per expert, rows of a block beyond them (None: drop the rest), form."""

    capacity: int
    block: int | None
    form: str = "rows"  # a key of `experts.FORMS`


class Block(flax.struct.PyTreeNode):
    """Up to R assignments of one expert."""

    expert: Array  # i32[]
    assignment_R: Array  # i32[R], A past the expert's last row


def _grouped_mlp(
    layout: Layout,
    functions: Functions,
    x_ND: Array,
    plan: Plan,
    weights_NK: Array,
    params: ExpertParams,
) -> Array:
    """Mixture of the chosen experts' outputs [N, O]; differentiable in x, weights and params."""
    return _forward(layout, functions, x_ND, plan, weights_NK, params)[0]


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


grouped_mlp = jax.custom_vjp(_grouped_mlp, nondiff_argnums=(0, 1))
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
