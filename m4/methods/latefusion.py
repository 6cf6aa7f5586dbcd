"""Late fusion: a model for each modality alone, whose logits are averaged over what a row has.

The other baseline of nearly every paper. With `heads='apart'` every model is trained on its own
loss, as if it were alone: none knows of the others, and an absent modality is left out of the mean.
With `'together'` the loss is that of the mean, so that models may share the work.

Letters: B rows, M modalities, D width, C outputs of a task.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from m4 import task_losses
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.fusion import HeadsOfEach, mean_of_present
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class LateFusion(nn.Module):
    """Any number of modalities of any kind; tasks of the generic kinds."""

    data: DataSpec
    width: int = 64
    dropout: float = 0.2
    heads: Literal["apart", "together"] = "apart"  # whose loss trains the models

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]; of every modality alone in `extra`, [B, M, dim].

        Training needs the rng 'dropout'. Raises ValueError for modality kinds without an encoder.
        """
        check_fields(self)
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, _ = summary(batch, train=train)
        present_BM = batch.present(self.data)
        each = HeadsOfEach(self.data.tasks, name="heads")(nn.gelu(x_BMD))
        weight_BM1 = present_BM[..., None].astype(jnp.float32)
        mean = {name: mean_of_present(x_BMC, weight_BM1) for name, x_BMC in each.items()}
        return Outputs(mean, {}, extra=each)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """A row's loss is the mean of its modalities' own losses, or that of their mean."""
        del step
        if self.heads == "together":
            return task_losses.objective(self.data, out, batch, {})
        return task_losses.of_each(self.data, out.extra, batch, batch.present(self.data))
