"""Concatenation, or early fusion: all modalities side by side through one network.

The baseline of nearly every paper. Every modality becomes a token, an absent one a learned vector;
tokens and the statistics of series and tables are one row of numbers, read by `depth` hidden layers
and the heads. Nothing is routed and nothing attends.

Letters: B rows, M modalities, D width, N columns of statistics.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4 import task_losses
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.fusion import Hidden
from m4.nn.layers import Dropout, MissingIndicator, StackedLayerNorm, TaskHeads
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class Concat(nn.Module):
    """Any number of modalities of any kind; tasks of the generic kinds."""

    data: DataSpec
    width: int = 64
    hidden: int = 128  # units of a hidden layer
    depth: int = 2  # hidden layers over all modalities
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs the rng 'dropout'.

        Raises ValueError for modality kinds without an encoder and for impossible fields.
        """
        check_fields(self, depth=1)
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, columns_BN = summary(batch, train=train)
        x_BMD = StackedLayerNorm(name="norm")(x_BMD)
        present_BM = batch.present(self.data)
        x_BMD = MissingIndicator(x_BMD.shape[1], name="missing")(x_BMD, present_BM)
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        row_BN = jnp.concatenate([rearrange(x_BMD, "b m d -> b (m d)"), columns_BN], -1)
        hidden = Hidden(self.hidden, self.depth, self.dropout, name="hidden")
        h_BD = hidden(drop(row_BN), train=train)
        heads = TaskHeads(self.data.tasks, name="heads")
        return Outputs(heads(h_BD), {})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The losses of the tasks; see `task_losses.objective`."""
        del step
        return task_losses.objective(self.data, out, batch, {})
