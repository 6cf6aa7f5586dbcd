"""Rows on their way: moves by gather alone, whose gradients go back by gather.

A scatter-add of rows, the gradient that JAX would find, is slow on every backend.

Letters: N tokens, K choices, A = K*N assignments, E experts, C slots of an expert, X any width.
"""

import jax
import jax.numpy as jnp

from m4.moe.engine.grouped import Plan, slots, take_assignments, take_tokens
from m4.types import Array


def _fill_slots(capacity: int, plan: Plan, x_NX: Array) -> Array:
    """Token rows in slots, [E, C, X]; the gradient comes back by `take_assignments`."""
    return take_tokens(plan, x_NX, slots(plan, capacity))


def _empty_slots(plan: Plan, slots_ECX: Array) -> Array:
    """`take_assignments` from slots alone; the gradient goes back by one gather."""
    return take_assignments(plan, slots_ECX)


def _fill_backward(capacity, plan, g_ECX):
    del capacity
    return None, jnp.sum(take_assignments(plan, g_ECX), axis=0)


def _empty_backward(plan_and_slots, g_KNX):
    plan, shape = plan_and_slots
    g_AX = g_KNX.reshape(plan.size, -1)
    return None, g_AX.at[slots(plan, shape.size)].get(mode="fill", fill_value=0)


fill_slots = jax.custom_vjp(_fill_slots, nondiff_argnums=(0,))
empty_slots = jax.custom_vjp(_empty_slots)
fill_slots.defvjp(
    lambda capacity, plan, x_NX: (fill_slots(capacity, plan, x_NX), plan), _fill_backward
)
empty_slots.defvjp(
    lambda plan, slots_ECX: (
        empty_slots(plan, slots_ECX),
        (plan, jnp.zeros(slots_ECX.shape[1], bool)),
    ),
    _empty_backward,
)


def _sort_rows(plan: Plan, x_NX: Array) -> Array:
    """Token rows in sorted order, [A, X]; zeros where a token names no expert."""
    named_A = jnp.arange(plan.size) < plan.start_E[-1]
    return take_tokens(plan, x_NX, jnp.where(named_A, plan.order_A, plan.size))


def _unsort_rows(plan: Plan, y_AX: Array) -> Array:
    """Every assignment's row, [K, N, X], from sorted order; zeros where it names no expert."""
    position_A = jnp.where(plan.valid_A, plan.position_A, plan.size)
    rows_AX = y_AX.at[position_A].get(mode="fill", fill_value=0)
    return rows_AX.reshape(plan.num_choices, -1, y_AX.shape[1])


def _unsort_backward(plan, g_KNX):
    named_A = jnp.arange(plan.size) < plan.start_E[-1]
    g_AX = g_KNX.reshape(plan.size, -1)[plan.order_A]
    return None, jnp.where(named_A[:, None], g_AX, 0)


sort_rows, unsort_rows = jax.custom_vjp(_sort_rows), jax.custom_vjp(_unsort_rows)
sort_rows.defvjp(
    lambda plan, x_NX: (sort_rows(plan, x_NX), plan),
    lambda plan, g_AX: (None, jnp.sum(unsort_rows(plan, g_AX), axis=0)),
)
unsort_rows.defvjp(lambda plan, y_AX: (unsort_rows(plan, y_AX), plan), _unsort_backward)
