"""FlexCare as published (Xu et al., KDD 2024): we had the abstract and the framework figure.

Tokens of all modalities, a token for every combination of them and a token per task pass through a
transformer whose mask lets a combination read its own modalities only. The tokens of available
combinations go to experts that a gate chooses by combination and task; the task's token weighs the
results. No token but the task's own depends on the task, so one pass answers all. What the figure
does not show is as in the authors' code (`released.py`); docs/methods/flexcare.md lists every
difference.

Letters: B rows, K tasks, F features of a head.
"""

import flax.linen as nn

from m4.maths import torch_uniform
from m4.methods.flexcare.framework import Framework
from m4.methods.flexcare.tokens import data_tokens
from m4.nn.layers import TaskHeads
from m4.resolve import check_fields
from m4.types import Batch, Outputs


class PaperFlexCare(Framework):
    """Any number of modalities, any tasks, all answered in one pass."""

    patch: int = 16  # pixels of an image's token

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Raises ValueError for impossible fields, kinds without tokens and too many combinations.
        """
        check_fields(self, depth=1)
        tokens = data_tokens(self.data, batch, self.width, self.patch)
        h_BKF, aux, moe = self.answers(*tokens, batch, train=train)
        heads = TaskHeads(self.data.tasks, kernel_init=torch_uniform(), name="heads")
        logits = heads({name: h_BKF[:, k] for k, name in enumerate(self.data.task_names)})
        return Outputs(logits, aux, {"layer_0": moe})
