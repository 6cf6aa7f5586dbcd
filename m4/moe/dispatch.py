"""Dispatch: run the chosen experts on every token and mix their outputs.

The one interface of this file:

    apply_experts(x_ND, routing, params, *, strategy='auto', capacity_factor=None, activation,
                  output=None) -> (y_NO, dropped f32[])

y_n = sum_k weights_nk * output(expert_{experts_nk}(x_n)). Assignments to expert E (invalid or
forbidden) contribute nothing. `dropped` is the share of valid assignments that were not served.
`output` is a function on an expert's output vector before mixing (None: identity).

Letters: N tokens, E experts, K chosen experts, D input, F hidden and O output width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from m4.moe.experts import ExpertParams, apply_stacked
from m4.types import Array, Routing


def apply_experts(
    x_ND: Array,
    routing: Routing,
    params: ExpertParams,
    *,
    strategy: str = "auto",
    capacity_factor: float | None = None,
    activation: Callable[[Array], Array],
    output: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Mixture of the chosen experts' outputs, and the share of assignments dropped."""
    if strategy not in ("auto", "dense") or capacity_factor is not None:
        raise ValueError(f"strategy={strategy!r}, capacity_factor={capacity_factor}: only 'dense'")
    return dense(x_ND, routing, params, activation=activation, output=output)


def dense(x_ND, routing, params, *, activation, output=None):
    """Every expert on every token: the definition, and the oracle of the other strategies."""
    num_experts = params.w1.shape[0]
    x_END = jnp.broadcast_to(x_ND, (num_experts, *x_ND.shape))
    y_ENO = apply_stacked(x_END, params, activation=activation)
    y_ENO = y_ENO if output is None else output(y_ENO)
    onehot_NKE = jax.nn.one_hot(routing.experts, num_experts, dtype=routing.weights.dtype)
    mix_NE = jnp.einsum("nk,nke->ne", routing.weights, onehot_NKE)
    return jnp.einsum("ne,eno->no", mix_NE, y_ENO), jnp.zeros(())
