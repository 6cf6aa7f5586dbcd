"""E two-layer perceptrons on C rows each, forward and backward, in the form the backend runs best.

    y = activation(x W1 + b1) W2 + b2

The forms compute the same; what differs is which operands are transposed in memory, and that costs
XLA:CPU up to a factor of two either way (docs/performance.md). A form is a pair

    forward(x_ECD, params, activation)      -> (y_ECO, saved)
    backward(saved, dy_ECO, params, activation, dtype) -> (dx_ECD, gradient of params in dtype)

Letters: E experts, C rows per expert, D input, F hidden, O output width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from m4.moe.experts import ExpertParams


class Form(NamedTuple):
    """One way to compute the same."""

    forward: Callable
    backward: Callable


def _rows_forward(x_ECD, params, activation):
    h_ECF = jnp.einsum("ecd,edf->ecf", x_ECD, params.w1) + params.b1[:, None]
    y_ECO = jnp.einsum("ecf,efo->eco", activation(h_ECF), params.w2) + params.b2[:, None]
    return y_ECO, (x_ECD, h_ECF)


def _rows_backward(saved, dy_ECO, params, activation, dtype, *, turned_dw2=False):
    x_ECD, h_ECF = saved
    a_ECF, activation_vjp = jax.vjp(activation, h_ECF)
    (dh_ECF,) = activation_vjp(jnp.einsum("eco,efo->ecf", dy_ECO, params.w2))
    dx_ECD = jnp.einsum("ecf,edf->ecd", dh_ECF, params.w1)
    if turned_dw2:
        dw2_EOF = jnp.einsum("eco,ecf->eof", dy_ECO, a_ECF, preferred_element_type=dtype)
        dw2 = _turn(dw2_EOF)
    else:
        dw2 = jnp.einsum("ecf,eco->efo", a_ECF, dy_ECO, preferred_element_type=dtype)
    return dx_ECD, ExpertParams(
        w1=jnp.einsum("ecd,ecf->edf", x_ECD, dh_ECF, preferred_element_type=dtype),
        b1=jnp.sum(dh_ECF, axis=1, dtype=dtype),
        w2=dw2,
        b2=jnp.sum(dy_ECO, axis=1, dtype=dtype),
    )


def _tall_backward(*args):
    """With many rows XLA:CPU is a third faster at dy^T a than at a^T dy."""
    return _rows_backward(*args, turned_dw2=True)


def _columns_forward(x_ECD, params, activation):
    x_EDC = _turn(x_ECD)
    h_EFC = _turn(jnp.einsum("edc,edf->ecf", x_EDC, params.w1)) + params.b1[:, :, None]
    a_EFC = _by_column(activation)(h_EFC)
    y_ECO = jnp.einsum("efc,efo->eco", a_EFC, params.w2) + params.b2[:, None]
    return y_ECO, (x_EDC, h_EFC)


def _columns_backward(saved, dy_ECO, params, activation, dtype):
    x_EDC, h_EFC = saved
    a_EFC, activation_vjp = jax.vjp(_by_column(activation), h_EFC)
    (dh_EFC,) = activation_vjp(jnp.einsum("efo,eco->efc", params.w2, dy_ECO))
    dx_EDC = jnp.einsum("edf,efc->edc", params.w1, dh_EFC)
    return _turn(dx_EDC), ExpertParams(
        w1=jnp.einsum("edc,efc->edf", x_EDC, dh_EFC, preferred_element_type=dtype),
        b1=jnp.sum(dh_EFC, axis=2, dtype=dtype),
        w2=jnp.einsum("efc,eco->efo", a_EFC, dy_ECO, preferred_element_type=dtype),
        b2=jnp.sum(dy_ECO, axis=1, dtype=dtype),
    )


def _by_column(activation):
    """The activation of a row may mix its entries, so columns are mapped over."""
    return jax.vmap(activation, in_axes=2, out_axes=2)


def _turn(array_EXY):
    """Transpose of every matrix, in memory: the compiler must not fold it into a matmul."""
    turned_EYX = lax.optimization_barrier(array_EXY).swapaxes(1, 2)
    return lax.optimization_barrier(turned_EYX)


FORMS = {
    "rows": Form(_rows_forward, _rows_backward),
    "tall": Form(_rows_forward, _tall_backward),
    "columns": Form(_columns_forward, _columns_backward),
}
