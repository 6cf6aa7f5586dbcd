"""Experts: E two-layer perceptrons with stacked weights, on C rows each.

    y = output(activation(x W1 + b1) W2 + b2)

Forms of the same, forward and backward, between which the engine chooses for a backend: 'rows'
keeps the hidden layer as [E, C, F]; 'columns' keeps it as [E, F, C], so that every product takes a
weight matrix as it lies in memory, only the small operand is packed, and XLA:CPU is up to a fifth
faster (docs/performance.md).

Letters: E experts, C rows per expert, D input width, F hidden width, O output width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from m4 import maths
from m4.moe import route
from m4.types import Array

# Logical axes of the dimensions; the mesh axes they lie on are in `m4.axes.RULES`.
AXES = {
    "w1": ("expert", "mlp", "embed"),
    "b1": ("expert", "mlp"),
    "w2": ("expert", "mlp", "embed"),
    "b2": ("expert", "embed"),
}


class ExpertParams(flax.struct.PyTreeNode):
    """Weights of all experts.

    Both matrices have the hidden units as rows: w1 as PyTorch stores a layer, w2 as Flax does. A
    backend then multiplies either of them, forwards and backwards, as it lies in memory.
    """

    w1: Array  # [E, F, D]
    b1: Array  # [E, F]
    w2: Array  # [E, F, O]
    b2: Array  # [E, O]


def shapes(
    num_experts: int, width: int, hidden: int, out: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Shape of every field of `ExpertParams`; `out` defaults to `width`."""
    out = width if out is None else out
    return {
        "w1": (num_experts, hidden, width),
        "b1": (num_experts, hidden),
        "w2": (num_experts, hidden, out),
        "b2": (num_experts, out),
    }


def init(
    name: str, kernel_init: nn.initializers.Initializer | None = None, *, shared: bool = False
) -> nn.initializers.Initializer:
    """Initialiser and logical axes of one field: LeCun normal kernels, zero biases.

    `shared` experts are few and serve every token: they are not split over devices.
    """
    # Explicit dimensions: by default the expert dimension would count as receptive field and the
    # weights would shrink with E. `kernel_init` sees [E, in, out], as everywhere in Flax.
    lecun = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
    kernel = kernel_init or lecun

    def turned(key, shape, dtype=jnp.float32):
        num_experts, hidden, width = shape
        return kernel(key, (num_experts, width, hidden), dtype).swapaxes(1, 2)

    function = {"w1": turned, "w2": kernel}.get(name, nn.initializers.zeros)
    axes = (None, *AXES[name][1:]) if shared else AXES[name]
    return nn.with_logical_partitioning(function, axes)


def create(
    module: nn.Module,
    num_experts: int,
    width: int,
    hidden: int,
    out: int | None = None,
    kernel_init: nn.initializers.Initializer | None = None,
    *,
    shared: bool = False,
) -> ExpertParams:
    """Parameters of `module`, whose names are the fields of `ExpertParams`."""
    sizes = shapes(num_experts, width, hidden, out).items()
    return ExpertParams(
        **{name: module.param(name, init(name, kernel_init, shared=shared), s) for name, s in sizes}
    )


@dataclass(frozen=True)
class Functions:
    """What an expert computes besides its two matmuls."""

    activation: Callable[[Array], Array]
    output: Callable[[Array], Array] | None = None

    def finish(self, y: Array) -> Array:
        """`output`, or nothing."""
        return self.output(y) if self.output else y

    @classmethod
    def named(cls, activation: str, output: str | None) -> "Functions":
        """By names in this file, or 'package.module:name'."""
        found = {"activation": activation, "output": output}
        return cls(**{f: n and route.named(f, n, "experts") for f, n in found.items()})

    def apply(self, x_ECD: Array, params: ExpertParams) -> Array:
        """Every expert on its own C rows, [E, C, O], in the dtype of `x_ECD`."""
        return self.finish(_mlp(x_ECD, cast(params, x_ECD.dtype), self.activation))


def cast(params: ExpertParams, dtype: Any) -> ExpertParams:
    """The parameters in the dtype of the computation."""
    return jax.tree.map(lambda p: p.astype(dtype), params)


class SharedExperts(nn.Module):
    """The sum of experts that every token visits at weight 1 (DeepSeekMoE, arXiv 2401.06066)."""

    num: int
    hidden: int
    out: int
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x_ND: Array, functions: Functions) -> Array:
        """[N, O], in the dtype of `x_ND`."""
        width, kernel_init = x_ND.shape[-1], self.kernel_init
        params = create(self, self.num, width, self.hidden, self.out, kernel_init, shared=True)
        x_END = jnp.broadcast_to(x_ND, (self.num, *x_ND.shape))
        return jnp.sum(functions.apply(x_END, params), axis=0)


# --- forms --------------------------------------------------------------------------------------


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


def _rows(x_ECD: Array, params: ExpertParams, activation: Callable) -> Array:
    """Every expert on its C rows, [E, C, O]; the weights' gradients come as these lie in memory."""
    return _rows_forward(x_ECD, params, activation)[0]


def _mlp_forward(x_ECD, params, activation):
    y_ECO, saved = _rows_forward(x_ECD, params, activation)
    return y_ECO, (saved, params)


def _mlp_backward(activation, residuals, dy_ECO):
    saved, params = residuals
    dx_ECD, grads = _rows_backward(saved, dy_ECO, params, activation, params.w1.dtype)
    return dx_ECD.astype(saved[0].dtype), grads


_mlp = jax.custom_vjp(_rows, nondiff_argnums=(2,))
_mlp.defvjp(_mlp_forward, _mlp_backward)


# --- activations and output functions -----------------------------------------------------------


def gelu(x: Array) -> Array:
    """Exact GELU (with erf), as in FuseMoE and Flex-MoE."""
    return maths.gelu(x)


def relu(x: Array) -> Array:
    """Rectifier, as in FlexCare."""
    return jax.nn.relu(x)


def silu(x: Array) -> Array:
    """Sigmoid-weighted linear unit."""
    return jax.nn.silu(x)


def softmax(x: Array) -> Array:
    """For `output`: an expert's output as a distribution, which FuseMoE's release mixes."""
    return jax.nn.softmax(x, axis=-1)
