"""FlexCare (Xu et al., KDD 2024), as we ship it: a token per combination and one per task.

One token per modality, from statistics over time, a token for every combination of them and a token
per task pass through a transformer whose mask lets a combination read its own modalities only. The
tokens of available combinations go to experts that a gate chooses by combination and task; the
task's token weighs the results. The heads read both, and the statistics. `paper.py` holds the
published framework, `released.py` the authors' code; docs/methods/flexcare.md lists every
difference.

Letters: B rows, M modalities, K tasks, D width, N statistics, F features of a head.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from m4.methods.flexcare.framework import Framework
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import Dropout, TaskHeads
from m4.resolve import check_fields
from m4.types import Batch, Outputs


class FlexCare(Framework):
    """Any number of modalities, any tasks, all answered in one pass."""

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for impossible fields, kinds without an encoder and too many combinations.
        """
        check_fields(self, depth=1)
        summary = ModalitySummary(self.data, self.width, self.dropout, name="summary")
        x_BMD, wide_BN = summary(batch, train=train)
        x_BMD += self.param("position", nn.initializers.normal(0.02), x_BMD.shape[1:])
        present_BM, owner_M = batch.present(self.data), np.arange(x_BMD.shape[1])
        h_BKF, aux, moe = self.answers(x_BMD, present_BM, owner_M, batch, train=train)

        drop = Dropout(self.dropout, deterministic=not train, name="head_drop")
        h_BKF, wide_BN = drop(h_BKF), drop(wide_BN)
        h = {name: h_BKF[:, k] for k, name in enumerate(self.data.task_names)}
        h = {name: jnp.concatenate([h_BF, wide_BN], -1) for name, h_BF in h.items()}
        logits = TaskHeads(self.data.tasks, name="heads")(h)
        return Outputs(logits, aux, {"layer_0": moe})
