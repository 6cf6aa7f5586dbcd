"""M4oE (Wu et al., ICLR 2025) as released: `tangzhengxu2001/m4oe`, commit fb2906c.

The modules of the authors' code, which differ from the paper (`paper.py`) so: an absent image is a
zero image, attended and routed like any other, also in a row that has none; rows only train with
the labels of all tasks; the information is I(token; task), experts summed out, summed over rows,
and no loss (`aux_weights={'information': 0.05}` makes it one); there is no dropout.
docs/methods/m4oe.md lists every difference.

Letters: B rows, M modalities, T tokens of a modality, D width, P tasks.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from m4.methods.m4oe.information import as_losses, released_information
from m4.methods.m4oe.mixtures import Mixtures
from m4.methods.m4oe.objective import focal_loss, objective
from m4.moe.options import SoftOptions
from m4.nn.layers import StackedHeads
from m4.resolve import check_fields
from m4.specs import TaskSpec
from m4.types import Array, Batch, Mean, Outputs


class ReleasedM4oE(Mixtures):
    """Images (other modalities as in `M4oE`); tasks with classes, and generic ones.

    Published sizes are the paper's.
    """

    moe: SoftOptions = SoftOptions(inputs="unit")
    dropout: float = 0.0
    focal: float = 2.0  # power of 1 - p in the loss of classes
    class_weights: Mapping[str, tuple[float, ...]] = FrozenDict({})  # task -> weight per class
    aux_weights: Mapping[str, float] = FrozenDict({})  # 'information' is commented out there

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, and `extra` as of `M4oE`. Training needs the rng 'dropout'.

        Raises ValueError for modality and task kinds that it cannot take and for unknown choices.
        """
        check_fields(self)
        grid = self.tokens(batch, epsilon=1e-12, train=train)
        everyone_BM = jnp.ones((len(batch.weight), len(self.data.modalities)), bool)
        s_BMD = self.per_modality(grid, train=train)
        g = self.per_task(grid, "expert_slot", train=train)
        f_BPD = self.fuse(g.pooled, s_BMD, everyone_BM, train=train)
        # A binary task has two logits there; what it loses, scores and shows is their difference.
        heads = StackedHeads([two_logits(task) for task in self.data.tasks], name="heads")
        logits = heads(f_BPD)
        logits |= {
            task.name: logits[task.name][:, 1:] - logits[task.name][:, :1]
            for task in self.data.tasks
            if task.kind == "binary"
        }
        out = self.described(logits, g, s_BMD, grid, train=train)
        value_B = released_information(g.slots.logits[:, 0], g.slots.mask[:, 0])
        value = -jnp.sum(value_B * (batch.weight > 0))
        return out.replace(aux_losses=as_losses(value, self.aux_weights))

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Focal losses of the rows that have every label."""
        del step
        batch = batch.replace(weight=batch.weight * all_labels(batch))
        row_loss = focal_loss(self.class_weights, self.focal)
        return objective(self.data, out, batch, self.aux_weights, row_loss, by_name=True)


def two_logits(task: TaskSpec) -> TaskSpec:
    """A binary task as one of two classes."""
    return dataclasses.replace(task, kind="multiclass", dim=2) if task.kind == "binary" else task


def all_labels(batch: Batch) -> Array:
    """1 for rows with every label, else 0, f32[B]."""
    known = [
        jnp.asarray(t.mask).reshape(t.mask.shape[0], -1).all(-1) for t in batch.targets.values()
    ]
    return jnp.stack(known, -1).all(-1).astype(jnp.float32)
