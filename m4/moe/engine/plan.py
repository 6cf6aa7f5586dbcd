"""Where every assignment goes: one sort by expert, and row movement by gather only.

Assignment a = k*N + n is choice k of token n. Sorted by expert, the first C assignments of an
expert sit in its C slots, the others only have a sorted position. Rows are always gathered, in
the backward pass too: a scatter-add of rows is slow on every backend.

Letters: N tokens, K choices, A = K*N assignments, E experts, C capacity, X any width.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from m4.types import Array


@flax.struct.dataclass
class Plan:
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


def take_assignments(plan: Plan, slots_ECX: Array, sorted_PX: Array | None = None) -> Array:
    """Every assignment's row, [K, N, X]; zeros for the unserved.

    The first C of an expert are taken from its slots, the others from `sorted_PX`, whose rows
    are sorted positions (None: they are not served).
    """
    num_experts, capacity, width = slots_ECX.shape
    in_slot_A = plan.valid_A & (plan.rank_A >= 0) & (plan.rank_A < capacity)
    slot_A = jnp.where(in_slot_A, plan.expert_A * capacity + plan.rank_A, num_experts * capacity)
    flat_SX = slots_ECX.reshape(num_experts * capacity, width)
    rows_AX = flat_SX.at[slot_A].get(mode="fill", fill_value=0)
    if sorted_PX is not None:
        late_A = jnp.where(plan.valid_A & ~in_slot_A, plan.position_A, sorted_PX.shape[0])
        late_AX = sorted_PX.at[late_A].get(mode="fill", fill_value=0)
        rows_AX = jnp.where(in_slot_A[:, None], rows_AX, late_AX)
    return rows_AX.reshape(plan.num_choices, -1, width)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fill_slots(capacity: int, plan: Plan, x_NX: Array) -> Array:
    """Token rows in slots, [E, C, X]; the gradient comes back by `take_assignments`."""
    return take_tokens(plan, x_NX, slots(plan, capacity))


@jax.custom_vjp
def empty_slots(plan: Plan, slots_ECX: Array) -> Array:
    """`take_assignments` from slots alone; the gradient goes back by one gather."""
    return take_assignments(plan, slots_ECX)


def _fill_backward(capacity, plan, g_ECX):
    del capacity
    return None, jnp.sum(take_assignments(plan, g_ECX), axis=0)


def _empty_backward(plan_and_slots, g_KNX):
    plan, shape = plan_and_slots
    g_AX = g_KNX.reshape(plan.size, -1)
    return None, g_AX.at[slots(plan, shape.size)].get(mode="fill", fill_value=0)


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


@jax.custom_vjp
def sort_rows(plan: Plan, x_NX: Array) -> Array:
    """Token rows in sorted order, [A, X]; zeros where a token names no expert."""
    named_A = jnp.arange(plan.size) < plan.start_E[-1]
    return take_tokens(plan, x_NX, jnp.where(named_A, plan.order_A, plan.size))


@jax.custom_vjp
def unsort_rows(plan: Plan, y_AX: Array) -> Array:
    """Every assignment's row, [K, N, X], from sorted order; zeros where it names no expert."""
    position_A = jnp.where(plan.valid_A, plan.position_A, plan.size)
    rows_AX = y_AX.at[position_A].get(mode="fill", fill_value=0)
    return rows_AX.reshape(plan.num_choices, -1, y_AX.shape[1])


def _unsort_backward(plan, g_KNX):
    named_A = jnp.arange(plan.size) < plan.start_E[-1]
    g_AX = g_KNX.reshape(plan.size, -1)[plan.order_A]
    return None, jnp.where(named_A[:, None], g_AX, 0)


sort_rows.defvjp(
    lambda plan, x_NX: (sort_rows(plan, x_NX), plan),
    lambda plan, g_AX: (None, jnp.sum(unsort_rows(plan, g_AX), axis=0)),
)
unsort_rows.defvjp(lambda plan, y_AX: (unsort_rows(plan, y_AX), plan), _unsort_backward)
