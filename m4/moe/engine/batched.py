"""E two-layer perceptrons on C rows each, forward and backward, in the form the backend runs best.

    y = activation(x W1 + b1) W2 + b2

The forms compute the same. 'rows' keeps the hidden layer as [E, C, F]. 'columns' keeps it as
[E, F, C]: every product then takes a weight matrix as it lies in memory, only the small operand is
packed, and XLA:CPU is up to a fifth faster (docs/performance.md). A form is a pair

    forward(x_ECD, params, activation)      -> (y_ECO, saved)
    backward(saved, dy_ECO, params, activation, dtype) -> (dx_ECD, gradient of params in dtype)

Letters: E experts, C rows per expert, D input, F hidden, O output width.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from m4.moe.experts import ExpertParams


class Form(NamedTuple):
    """One way to compute the same."""

    forward: Callable
    backward: Callable


def _rows_forward(x_ECD, params, activation):
    h_ECF = jnp.einsum("ecd,efd->ecf", x_ECD, params.w1) + params.b1[:, None]
    y_ECO = jnp.einsum("ecf,efo->eco", activation(h_ECF), params.w2) + params.b2[:, None]
    return y_ECO, (x_ECD, h_ECF)


def _rows_backward(saved, dy_ECO, params, activation, dtype):
    x_ECD, h_ECF = saved
    a_ECF, activation_vjp = jax.vjp(activation, h_ECF)
    (dh_ECF,) = activation_vjp(jnp.einsum("eco,efo->ecf", dy_ECO, params.w2))
    dx_ECD = jnp.einsum("ecf,efd->ecd", dh_ECF, params.w1)
    return dx_ECD, ExpertParams(
        w1=jnp.einsum("ecf,ecd->efd", dh_ECF, x_ECD, preferred_element_type=dtype),
        b1=jnp.sum(dh_ECF, axis=1, dtype=dtype),
        w2=jnp.einsum("ecf,eco->efo", a_ECF, dy_ECO, preferred_element_type=dtype),
        b2=jnp.sum(dy_ECO, axis=1, dtype=dtype),
    )


def _columns_forward(x_ECD, params, activation):
    h_EFC = jnp.einsum("efd,ecd->efc", params.w1, x_ECD) + params.b1[:, :, None]
    a_EFC = _by_column(activation)(h_EFC)
    y_ECO = jnp.einsum("efc,efo->eco", a_EFC, params.w2) + params.b2[:, None]
    return y_ECO, (x_ECD, h_EFC)


def _columns_backward(saved, dy_ECO, params, activation, dtype):
    x_ECD, h_EFC = saved
    a_EFC, activation_vjp = jax.vjp(_by_column(activation), h_EFC)
    (dh_EFC,) = activation_vjp(jnp.einsum("efo,eco->efc", params.w2, dy_ECO))
    dx_ECD = jnp.einsum("efc,efd->ecd", dh_EFC, params.w1)
    return dx_ECD, ExpertParams(
        w1=jnp.einsum("efc,ecd->efd", dh_EFC, x_ECD, preferred_element_type=dtype),
        b1=jnp.sum(dh_EFC, axis=2, dtype=dtype),
        w2=jnp.einsum("efc,eco->efo", a_EFC, dy_ECO, preferred_element_type=dtype),
        b2=jnp.sum(dy_ECO, axis=1, dtype=dtype),
    )


def _by_column(activation):
    """The activation of a row may mix its entries, so columns are mapped over."""
    return jax.vmap(activation, in_axes=2, out_axes=2)


FORMS = {
    "rows": Form(_rows_forward, _rows_backward),
    "columns": Form(_columns_forward, _columns_backward),
}


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def mlp(x_ECD: jax.Array, params: ExpertParams, activation: Callable) -> jax.Array:
    """As `experts.apply_stacked`; gradients of the weights come as these lie in memory."""
    return _rows_forward(x_ECD, params, activation)[0]


def _mlp_forward(x_ECD, params, activation):
    y_ECO, saved = _rows_forward(x_ECD, params, activation)
    return y_ECO, (saved, params)


def _mlp_backward(activation, residuals, dy_ECO):
    saved, params = residuals
    dx_ECD, grads = _rows_backward(saved, dy_ECO, params, activation, params.w1.dtype)
    return dx_ECD.astype(saved[0].dtype), grads


mlp.defvjp(_mlp_forward, _mlp_backward)
