"""The one public head of M3H, a third party's, on HAIM's features with their quirks.

The head is rohankumar-1/multimodal-playground's (commit e9e6e15), an independent reader's; the
features are made as lrsoenksen/HAIM (commit 691b883) makes them. Nothing of the authors is public.
docs/methods/m3h.md lists every difference.

Letters: B rows, M modalities, D width of a modality, T = U tasks, d task width.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.methods.m3h.cross_task import CrossTask
from m4.methods.m3h.haim import HaimVectors
from m4.methods.m3h.tasks import affine, objective, task_logits
from m4.nn.layers import Dropout
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class ReleasedM3H(nn.Module):
    """Any modalities and tasks, all of the same weight; absent modalities are zeros, like data."""

    data: DataSpec
    width: int = 64  # of an encoded modality
    task_width: int = 64
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool, active_T: Array | None = None) -> Outputs:
        """Logits of every task; see `M3H`. Training needs the rng 'dropout'."""
        tasks = self.data.tasks
        active_T = jnp.ones(len(tasks), bool) if active_T is None else active_T
        encoder = HaimVectors(
            self.data, self.width, self.dropout, zero_row=True, by_hour=True, name="encoder"
        )
        here_BM1 = batch.present(self.data)[..., None]
        x_BMD = jnp.where(here_BM1, encoder(batch, train=train), 0.0)
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        x_BN = drop(rearrange(x_BMD, "b m d -> b (m d)"))
        # Scores over their signed maximum, and an identity of weight 1, which fades with T.
        cross = CrossTask(len(tasks), self.task_width, norm="max", beta=1.0, name="cross_task")
        o_BTd, a_BTU = cross(x_BN, active_T)
        extra = {"active": active_T, "task_attention": a_BTU}
        return Outputs(task_logits(tasks, o_BTd, o_BTd[:, affine(tasks)]), {}, {}, extra)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Mean of the active tasks' losses, regression by squares."""
        del step
        return objective(self.data, out, batch, "uniform")
