"""Heads: one affine map per task on a shared representation.

Letters: B rows, T tasks, D width.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn

from m4.specs import TaskSpec
from m4.types import Array

GENERIC = ("binary", "multilabel", "multiclass", "regression")


class TaskHeads(nn.Module):
    """Logits of every task from its representation; `two_logits` for the authors' binary head.

    With `two_logits` a binary task has two outputs and the logit is their difference: softmax
    cross-entropy of the two is then the sigmoid cross-entropy of the difference, exactly.
    """

    tasks: Sequence[TaskSpec]
    two_logits: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Mapping[str, Array]) -> dict[str, Array]:
        """Task name -> [B, D] in, task name -> [B, dim] out.

        Raises ValueError for task kinds that need a head of their own method.
        """
        logits = {}
        for task in self.tasks:
            if task.kind not in GENERIC:
                raise ValueError(
                    f"task {task.name}: no generic head for kind {task.kind!r}; known: {GENERIC}"
                )
            double = self.two_logits and task.kind == "binary"
            dense = nn.Dense(
                2 * task.dim if double else task.dim, kernel_init=self.kernel_init, name=task.name
            )
            y = dense(h[task.name])
            logits[task.name] = y[:, task.dim :] - y[:, : task.dim] if double else y
        return logits
