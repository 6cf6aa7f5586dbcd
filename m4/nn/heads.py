"""Heads: one affine map per task on a shared representation.

Letters: B rows, T tasks, D width.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np

from m4.nn.layers import StackedDense
from m4.specs import TaskSpec
from m4.types import Array

GENERIC = ("binary", "multilabel", "multiclass", "regression", "survival")


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
        _require_generic(self.tasks)
        logits = {}
        for task in self.tasks:
            double = self.two_logits and task.kind == "binary"
            dense = nn.Dense(
                2 * task.dim if double else task.dim, kernel_init=self.kernel_init, name=task.name
            )
            y = dense(h[task.name])
            logits[task.name] = y[:, task.dim :] - y[:, : task.dim] if double else y
        return logits


class StackedHeads(nn.Module):
    """One affine map per task on a representation of its own, tasks of equal `dim` at once.

    Forty binary tasks are one einsum.
    """

    tasks: Sequence[TaskSpec]
    kernel_init: nn.initializers.Initializer | None = None
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, h_BTD: Array) -> dict[str, Array]:
        """[B, T, D] in the order of `tasks` -> task name -> [B, dim].

        Raises ValueError for task kinds that need a head of their own method.
        """
        _require_generic(self.tasks)
        logits = {}
        for dim in sorted({task.dim for task in self.tasks}):
            chosen = [t for t, task in enumerate(self.tasks) if task.dim == dim]
            name = f"dim_{dim}"
            heads = StackedDense(dim, len(chosen), self.kernel_init, self.bias_init, name=name)
            y_BTC = heads(h_BTD[:, np.array(chosen)])
            logits |= {self.tasks[t].name: y_BTC[:, i] for i, t in enumerate(chosen)}
        return {task.name: logits[task.name] for task in self.tasks}


def _require_generic(tasks):
    for task in tasks:
        if task.kind not in GENERIC:
            raise ValueError(
                f"task {task.name}: no generic head for kind {task.kind!r}; known: {GENERIC}"
            )
