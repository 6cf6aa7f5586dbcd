"""What fusion baselines share: heads that see one modality alone, means over what a row has.

Letters: B rows, M modalities, D width, N inputs, C outputs of a task.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from m4.maths import lie
from m4.nn.layers import Dropout, TaskHeads
from m4.specs import TaskSpec
from m4.types import Array


class HeadsOfEach(nn.Module):
    """`TaskHeads` of every modality, each with parameters of its own."""

    tasks: Sequence[TaskSpec]

    @nn.compact
    def __call__(self, h_BMD: Array) -> dict[str, Array]:
        """[B, M, D] -> task name -> logits of every modality alone, [B, M, C]."""
        heads = nn.vmap(
            TaskHeads,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(self.tasks, name="of_each")
        return heads(h_BMD)


class Hidden(nn.Module):
    """drop(GELU(affine)), so many times."""

    features: int
    depth: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[..., N] -> [..., features]."""
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        for i in range(self.depth):
            h = nn.Dense(self.features, name=f"layer_{i}")(x)
            x = drop(nn.gelu(lie(h, "batch", ..., "mlp")))
        return x


def mean_of_present(x_BMC: Array, weight_BMC: Array) -> Array:
    """Mean over modalities with weights that are 0 where one is absent, [B, C].

    Replaced rather than multiplied: nothing of an absent modality survives. 0 where all are absent.
    """
    total_BC = (weight_BMC * jnp.where(weight_BMC > 0, x_BMC, 0.0)).sum(1)
    weight_BC = weight_BMC.sum(1)
    return total_BC / jnp.where(weight_BC > 0, weight_BC, 1.0)
