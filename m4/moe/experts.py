"""Experts: E two-layer perceptrons with stacked weights.

Letters: E experts, C rows per expert, D input width, F hidden width, O output width.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from m4 import maths
from m4.types import Array

# Logical axes of the dimensions; the mesh axes they lie on are in `m4.sharding.RULES`.
AXES = {
    "w1": ("expert", "mlp", "embed"),
    "b1": ("expert", "mlp"),
    "w2": ("expert", "mlp", "embed"),
    "b2": ("expert", "embed"),
}


@flax.struct.dataclass
class ExpertParams:
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


def apply_stacked(x_ECD: Array, params: ExpertParams, *, activation=jax.nn.gelu) -> Array:
    """Every expert on its own C rows, [E, C, O]."""
    hidden_ECF = activation(jnp.einsum("ecd,efd->ecf", x_ECD, params.w1) + params.b1[:, None])
    return jnp.einsum("ecf,efo->eco", hidden_ECF, params.w2) + params.b2[:, None]


class SharedExperts(nn.Module):
    """The sum of experts that every token visits at weight 1 (DeepSeekMoE, arXiv 2401.06066)."""

    num: int
    hidden: int
    out: int
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x_ND: Array, *, activation, output=None) -> Array:
        """[N, O], in the dtype of `x_ND`; `output` acts on every expert's output."""
        sizes = shapes(self.num, x_ND.shape[-1], self.hidden, self.out)
        params = ExpertParams(
            **{
                name: self.param(name, init(name, self.kernel_init, shared=True), size)
                for name, size in sizes.items()
            }
        )
        params = jax.tree.map(lambda p: p.astype(x_ND.dtype), params)
        x_END = jnp.broadcast_to(x_ND, (self.num, *x_ND.shape))
        y_ENO = apply_stacked(x_END, params, activation=activation)
        return jnp.sum(y_ENO if output is None else output(y_ENO), axis=0)


def gelu(x: Array) -> Array:
    """Exact GELU (with erf), as in FuseMoE and Flex-MoE."""
    return maths.gelu(x)


def relu(x: Array) -> Array:
    """Rectifier, as in FlexCare."""
    return jax.nn.relu(x)


def silu(x: Array) -> Array:
    """Sigmoid-weighted linear unit."""
    return jax.nn.silu(x)


def softmax(y: Array) -> Array:
    """For `output`: an expert's output as a distribution, which FuseMoE's release mixes."""
    return jax.nn.softmax(y, axis=-1)
