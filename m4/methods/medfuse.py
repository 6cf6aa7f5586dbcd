"""MedFuse (Hayat, Geras and Shamout, MLHC 2022, arXiv 2207.07027): an LSTM over modalities.

Section 3.2: the vectors of what a row has are projected to one width and read as a sequence by a
recurrent network, which takes any number of them; the last state is classified. An absent modality
is no element of the sequence. docs/methods/baselines.md lists the differences.

Letters: B rows, M modalities, D width, H hidden units.
"""

import flax.linen as nn
import jax.numpy as jnp

from m4 import task_losses
from m4.maths import torch_uniform
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import Dropout, StackedDense, TaskHeads
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class MedFuse(nn.Module):
    """Any number of modalities of any kind, read in the schema's order."""

    data: DataSpec
    width: int = 64
    hidden: int = 128  # units of the LSTM
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs the rng 'dropout'.

        Raises ValueError for modality kinds without an encoder.
        """
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, _ = summary(batch, train=train)
        x_BMD = StackedDense(self.width, x_BMD.shape[1], name="project")(nn.gelu(x_BMD))
        present_BM = batch.present(self.data)
        init = torch_uniform(self.hidden)
        lstm = nn.OptimizedLSTMCell(
            self.hidden, kernel_init=init, recurrent_kernel_init=init, bias_init=init, name="lstm"
        )
        cell_BH = h_BH = jnp.zeros((x_BMD.shape[0], self.hidden))
        for m in range(x_BMD.shape[1]):
            here_B1 = present_BM[:, m, None]
            after, _ = lstm((cell_BH, h_BH), jnp.where(here_B1, x_BMD[:, m], 0.0))
            cell_BH = jnp.where(here_B1, after[0], cell_BH)
            h_BH = jnp.where(here_B1, after[1], h_BH)
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        heads = TaskHeads(self.data.tasks, name="heads")
        return Outputs(heads(drop(h_BH)), {})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The losses of the tasks; see `task_losses.objective`."""
        del step
        return task_losses.objective(self.data, out, batch, {})
