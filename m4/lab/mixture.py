"""The model of the planted task: one mixture-of-experts layer, whose outputs are summed.

Nothing stands before the gate or behind the experts, so that all that differs between two arms is
the gate. A token is asked once for every task.

Letters: B rows, M modalities, T tasks, D width, N = B M T tokens.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class Mixture(nn.Module):
    """For data of `m4.lab.planted`. The gate sees a token without its cluster."""

    data: DataSpec
    moe: MoEOptions = MoEOptions(gate="linear", num_experts=16, top_k=2, hidden=16)
    num_clusters: int = 4  # of a modality; only `m4.lab.nulls:by_cluster` asks
    aux_weights: Mapping[str, float] = FrozenDict()

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits for every task; zero where nothing is present."""
        streams = [batch.inputs[name] for name in self.data.modality_names]
        tasks, (rows, modalities) = len(self.data.tasks), (len(batch.weight), len(streams))
        shape = rows, modalities, tasks

        def tokens(a_BM):
            return rearrange(jnp.broadcast_to(a_BM[:, :, None], (*shape, *a_BM.shape[2:])),
                             "b m t ... -> (b m t) ...")  # fmt: skip

        values_BMD = jnp.stack([stream.values[:, 0] for stream in streams], 1)
        present_BM = jnp.stack([stream.present for stream in streams], 1)
        modality_BM = np.broadcast_to(np.arange(modalities), shape[:2])
        cluster_BM = values_BMD[..., -1].astype(jnp.int32) + modality_BM * self.num_clusters
        moe = MoE(self.moe, modalities, out=1, losses=tuple(sorted(self.aux_weights)), name="moe")
        y_N1, aux = moe(
            tokens(values_BMD[..., :-1]),
            valid_N=tokens(present_BM),
            modality_N=np.broadcast_to(modality_BM[..., None], shape).reshape(-1),
            num_rows=rows,
            train=train,
            cluster_N=tokens(cluster_BM),
            num_clusters=self.num_clusters * modalities,
            task_N=jnp.asarray(np.broadcast_to(np.arange(tasks), shape).reshape(-1)),
            num_tasks=tasks,
        )
        y_BMT = y_N1.reshape(shape)
        bias_T = self.param("bias", nn.initializers.zeros, (tasks,))
        y_BT = y_BMT.sum(1) + bias_T
        logits = {task.name: y_BT[:, t : t + 1] for t, task in enumerate(self.data.tasks)}
        layers = {"moe": aux}
        losses = task_losses.over_layers(layers, self.aux_weights)
        return Outputs(logits=logits, aux_losses=losses, moe=layers)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses and weighted losses of the layer."""
        del step
        return task_losses.objective(self.data, out, batch, self.aux_weights)
