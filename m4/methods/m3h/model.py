"""M3H (Bertsimas and Ma, arXiv 2404.18975) as we ship it: tasks that attend to each other.

Reconstructed from public descriptions: neither the paper's equations nor the authors' code could
be read. Every modality becomes a vector, every task its own projection of all of them, and tasks
read each other by attention. There are no experts and no gate. `paper.py` is our reading of the
public descriptions, `released.py` the one public head; beside them this model has trained encoders,
a non-linear task projection, a residual, and heads that read the statistics of series and tables.
docs/methods/m3h.md lists every difference and says what is known.

Which tasks are in play is an input, so one compiled step serves every coalition of a task
interaction score (`m4.eval.tim`).

Letters: B rows, M modalities, D width of a modality or of what heads read, T tasks, d task width,
C columns of statistics.
"""

import jax.numpy as jnp

from m4.methods.m3h.paper import PaperM3H
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import Dropout
from m4.types import Array, Batch


class M3H(PaperM3H):
    """Any modalities; binary, multilabel, multiclass, regression, clustering and survival tasks."""

    form = "residual"
    squares = False  # but Huber

    def encode(self, batch: Batch, train: bool) -> tuple[Array, Array]:
        """Trained summaries [B, M, D], and the statistics of series and tables [B, C]."""
        summary = ModalitySummary(self.data, self.width, self.dropout, "text", name="encoder")
        return summary(batch, train=train)

    def read(self, o_BTd: Array, columns_BC: Array, train: bool) -> Array:
        """A task's own view and the statistics, [B, T, D]."""
        drop = Dropout(self.dropout, deterministic=not train, name="head_drop")
        columns_BTC = jnp.repeat(drop(columns_BC)[:, None], o_BTd.shape[1], axis=1)
        return jnp.concatenate([drop(o_BTd), columns_BTC], -1)
