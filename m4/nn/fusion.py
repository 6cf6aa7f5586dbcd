"""What fusion baselines share: heads that see one modality alone, means over what a row has.

Letters: B rows, M modalities, D width, N inputs, C outputs of a task.
"""

from collections.abc import Mapping, Sequence

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
        return heads({task.name: h_BMD for task in self.tasks})


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


def mean_of_present(logits: Mapping[str, Array], weight_BM: Array) -> dict[str, Array]:
    """Logits [B, M, C] of every task, averaged with weights that are 0 where a modality is absent.

    Replaced rather than multiplied: nothing of an absent modality survives. 0 where all are absent.
    """

    def mean(x_BMC):
        kept_BMC = jnp.where(weight_BM[..., None] > 0, x_BMC, 0.0)
        total_B1 = weight_BM.sum(1, keepdims=True)
        total_BC = jnp.einsum("bm,bmc->bc", weight_BM, kept_BMC)
        return total_BC / jnp.where(total_B1 > 0, total_B1, 1.0)

    return {name: mean(x) for name, x in logits.items()}
