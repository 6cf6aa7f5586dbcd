"""A method that takes every kind of modality and task: what is refused is then the data."""

import flax.linen as nn

from m4 import task_losses
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class AnyKind(nn.Module):
    """One affine map per task of what is present, [B, M] -> [B, dim]."""

    data: DataSpec

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        present_BM = batch.present(self.data).astype("float32")
        tasks = self.data.tasks
        return Outputs({t.name: nn.Dense(t.dim, name=t.name)(present_BM) for t in tasks}, {})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        return task_losses.objective(self.data, out, batch, {})
