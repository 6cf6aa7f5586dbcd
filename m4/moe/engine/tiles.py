"""Grouped expert MLP over a table of tiles, for NVIDIA GPUs: exact for any load, at no slot's cost.

Rows lie sorted by expert; a tile is up to `BLOCK` rows of one expert, and a program of a kernel
takes one tile (`triton_kernels`). So the work is that of the rows there are, however they are
spread over experts, and what a few experts leave unfilled is less than a tile each. Weights are
read as they lie in memory, products are summed in float32, and a gradient is stored in the dtype
of what it is the gradient of: with bfloat16 experts no float32 stack of their size exists.

Letters: N tokens, K choices, A = K*N assignments, E experts, T tiles, D input, F hidden, O output
width, X, Y any width.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from m4.moe.engine.grouped import Plan
from m4.moe.engine.rows import sort_rows, unsort_rows
from m4.moe.experts import ExpertParams, Functions
from m4.types import Array

BLOCK = 128  # rows of a tile
MULTIPLE = 16  # of which widths must be: the smallest side of a tensor core's product


class Tiles(flax.struct.PyTreeNode):
    """Which rows a tile has: from `start_T` up to `end_T`, of `expert_T`; unused ones have none."""

    expert_T: Array  # i32[T]
    start_T: Array  # i32[T]
    end_T: Array  # i32[T]


class Kernels(NamedTuple):
    """The two products; what they leave unwritten is not read.

    `rows(x_AX, w, tiles, turned)`: every row times its expert's matrix, [A, Y]; `w` is [E, X, Y],
    or `turned` [E, Y, X]. `outer(x_AX, y_AY, start_E)`: the sum of x y^T over each expert's rows,
    [E, X, Y] in their dtype, zeros for an expert without any; `start_E` is i32[E + 1].
    """

    rows: Callable[[Array, Array, Tiles, bool], Array]
    outer: Callable[[Array, Array, Array], Array]


def tiles_of(plan: Plan, block: int = BLOCK) -> Tiles:
    """The tiles of a plan's sorted rows: A / block of them, and one more for each expert."""
    num = plan.size // block + plan.num_experts
    number_E = -(-plan.count_E // block)
    end_E = jnp.cumsum(number_E)
    t_T = jnp.arange(num, dtype=jnp.int32)
    expert_T = jnp.searchsorted(end_E, t_T, side="right", method="compare_all")
    expert_T = jnp.minimum(expert_T, plan.num_experts - 1).astype(jnp.int32)
    start_T = plan.first_E[expert_T] + (t_T - (end_E - number_E)[expert_T]) * block
    end_T = jnp.minimum(start_T + block, plan.start_E[1:][expert_T])
    end_T = jnp.where(t_T < end_E[-1], end_T, 0)
    return Tiles(expert_T, start_T.astype(jnp.int32), end_T.astype(jnp.int32))


def tiled_mlp(
    kernels: Kernels,
    functions: Functions,
    x_ND: Array,
    plan: Plan,
    weights_NK: Array,
    params: ExpertParams,
) -> Array:
    """Mixture of the chosen experts' outputs [N, O]; exact for any load.

    Raises ValueError for widths that are not multiples of `MULTIPLE`.
    """
    for width in (*params.w1.shape[1:], params.w2.shape[2]):
        if width % MULTIPLE:
            raise ValueError(
                f"moe.engine='grouped' takes widths that are multiples of {MULTIPLE}, not {width};"
                " choose another width or moe.hidden, or engine='dropless'"
            )
    x_AD = sort_rows(plan, x_ND)
    y_AO = functions.finish(_mlp(kernels, functions.activation, x_AD, plan, params))
    y_KNO = unsort_rows(plan, y_AO)
    return jnp.sum(y_KNO * weights_NK.T[..., None].astype(y_KNO.dtype), axis=0)


def _experts(kernels, activation, x_AD, plan, params) -> Array:
    """The experts on rows sorted by expert; only x and the hidden rows wait for the gradient."""
    return _forward(kernels, activation, x_AD, plan, params)[0]


def _forward(kernels, activation, x_AD, plan, params):
    tiles, expert_A = tiles_of(plan), plan.expert_A[plan.order_A]
    h_AF = _named(plan, kernels.rows(x_AD, params.w1, tiles, True))
    h_AF += _bias(params.b1, expert_A)
    y_AO = _named(plan, kernels.rows(activation(h_AF), params.w2, tiles, False))
    return y_AO + _bias(params.b2, expert_A), (x_AD, h_AF, plan, params)


def _backward(kernels, activation, residuals, dy_AO):
    x_AD, h_AF, plan, params = residuals
    tiles, dy_AO = tiles_of(plan), dy_AO.astype(x_AD.dtype)
    a_AF, activation_vjp = jax.vjp(activation, h_AF)
    (dh_AF,) = activation_vjp(_named(plan, kernels.rows(dy_AO, params.w2, tiles, True)))
    dx_AD = _named(plan, kernels.rows(dh_AF, params.w1, tiles, False))
    grads = ExpertParams(
        w1=kernels.outer(dh_AF, x_AD, plan.start_E),
        b1=_sums(dh_AF, tiles, params.b1),
        w2=kernels.outer(a_AF, dy_AO, plan.start_E),
        b2=_sums(dy_AO, tiles, params.b2),
    )
    return dx_AD, None, grads


_mlp = jax.custom_vjp(_experts, nondiff_argnums=(0, 1))
_mlp.defvjp(_forward, _backward)


def _named(plan: Plan, rows_AX: Array) -> Array:
    """Rows that name an expert; zeros for the others, which no kernel has written."""
    return jnp.where((jnp.arange(plan.size) < plan.start_E[-1])[:, None], rows_AX, 0)


def _bias(bias_EX: Array, expert_A: Array) -> Array:
    return bias_EX.at[expert_A].get(mode="fill", fill_value=0, indices_are_sorted=True)


def _sums(rows_AX: Array, tiles: Tiles, like_EX: Array) -> Array:
    """The sum of each expert's rows, [E, X]: by tile, then over tiles, not row by row in memory."""
    row_TR = tiles.start_T[:, None] + jnp.arange(BLOCK)
    row_TR = jnp.where(row_TR < tiles.end_T[:, None], row_TR, len(rows_AX))
    sums_TX = rows_AX.at[row_TR].get(mode="fill", fill_value=0).sum(1, dtype=jnp.float32)
    sums_EX = jax.ops.segment_sum(
        sums_TX, tiles.expert_T, len(like_EX), indices_are_sorted=True, mode="drop"
    )
    return sums_EX.astype(like_EX.dtype)
