"""More must not be worse than fewer: a ranking loss for every method, `train.ranking`.

Every row is passed twice, with what it has (more) and with a random part of that (fewer). Where its
loss with more is the larger one, the difference is a loss of its own; the task losses of both
passes count half each. SimMLM's MoFe loss (Li, Chen and Han, ICCV 2025, section 3.3 of arXiv
2507.19264; weight 0.1 there), with the number of modalities that stay drawn evenly.

Both passes draw the same dropout and noise, so that they differ by the modalities alone.

Letters: B rows, M modalities.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from m4 import task_losses
from m4.specs import DataSpec, TaskSpec
from m4.types import Array, Batch, Mean, Outputs, Stream, Target

FOLD = 0x52414E4B  # of a step's key: its other draws stay what they are without a ranking


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a step needs to rank its batches."""

    spec: DataSpec  # of the batches
    weight: float

    def fewer(self, batch: Batch, key: Array, terms: Mapping[str, Mean]) -> Batch:
        """`batch` whose rows lack some of their modalities, but never all: 1 to all but one stay.

        `terms` are the task losses of `batch`: means are over its labels, not over those of tasks
        that still have what they need.
        """
        present_BM = batch.present(self.spec)
        keep_BM = kept(present_BM, jax.random.fold_in(key, FOLD))
        inputs = {
            name: hidden(batch.inputs[name], keep_BM[:, m])
            for m, name in enumerate(self.spec.modality_names)
        }
        labels = {name: jax.lax.stop_gradient(term.weight) for name, term in terms.items()}
        return batch.replace(inputs={**batch.inputs, **inputs}, labels=labels)

    def loss(self, more: Outputs, fewer: Outputs, batch: Batch, less: Batch) -> Array:
        """Mean over rows of how much larger their loss is with more, summed over weighted tasks.

        0 for a row that had nothing to lose, or has no label. Raises ValueError for kinds of tasks
        without a loss per row.
        """
        lost_B = (batch.present(self.spec) & ~less.present(self.spec)).any(-1)

        def gap(task: TaskSpec, logits: Any, target: Target) -> tuple[Array, Array]:
            with_more_B, known_B = task_losses.row_loss(task, logits[0], target)
            with_fewer_B, _ = task_losses.row_loss(task, logits[1], target)
            return jnp.where(lost_B, jax.nn.relu(with_more_B - with_fewer_B), 0.0), known_B

        both: Any = {name: (more.logits[name], fewer.logits[name]) for name in self.spec.task_names}
        counted = task_losses.counted(self.spec, less)
        terms = task_losses.task_losses(self.spec, both, counted, row_loss=gap)
        return task_losses.total(self.spec, terms, {}, {})


def kept(present_BM: Array, key: Array) -> Array:
    """Which present modalities stay, bool[B, M]: 1 to n - 1 of n, evenly, and any of them evenly.

    The only one of a row stays.
    """
    order, number = jax.random.split(key)
    score_BM = jax.random.uniform(order, present_BM.shape)
    ahead_BMM = present_BM[:, None, :] & (score_BM[:, None, :] < score_BM[:, :, None])
    most_B = jnp.maximum(present_BM.sum(-1) - 1, 1)
    share_B = jax.random.uniform(number, most_B.shape)
    count_B = jnp.minimum(1 + jnp.floor(share_B * most_B).astype(most_B.dtype), most_B)
    return present_BM & (ahead_BMM.sum(-1) < count_B[:, None])


def hidden(stream: Stream, keep_B: Array) -> Stream:
    """`stream`, absent in rows outside `keep_B`: zeros, and `present` False."""

    def where(x: Array | None) -> Array | None:
        if x is None:
            return None
        keep = keep_B.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(keep, x, jnp.zeros_like(x))

    return jax.tree.map(where, stream)
