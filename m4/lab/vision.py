"""A small vision transformer whose feed-forward networks are mixtures of experts.

As V-MoE (Riquelme et al., NeurIPS 2021), which FuseMoE's authors put other gates into: patches are
the tokens that are routed. Every image of a row is a modality of its own; patches of all meet in
attention.

Letters: B rows, M modalities (images), P patches of an image, T = M P tokens, D width, N = B T.
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
from m4.nn.encoders.vit import clean_images
from m4.nn.layers import AttentionBlock, TaskHeads
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs


class VisionMoE(nn.Module):
    """For data whose modalities are single images of one shape."""

    data: DataSpec
    moe: MoEOptions = MoEOptions(gate="linear", num_experts=8, top_k=2, hidden=128)
    width: int = 64
    depth: int = 4
    num_heads: int = 4
    patch: int = 4
    aux_weights: Mapping[str, float] = FrozenDict()

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task. Raises ValueError unless patches tile the images."""
        names, p = self.data.modality_names, self.patch
        image_BM, here_BM1 = clean_images([batch.inputs[name] for name in names])
        if image_BM.shape[-3] % p or image_BM.shape[-2] % p:
            raise ValueError(f"patch={p} does not tile images of {image_BM.shape[-3:-1]}")
        patch_BTX = rearrange(image_BM[:, :, 0], "b m (y p) (x q) c -> b (m y x) (p q c)", p=p, q=p)
        x_BTD = nn.Dense(self.width, name="patch")(patch_BTX)
        init = nn.initializers.normal(0.02)
        x_BTD += self.param("position", init, x_BTD.shape[1:])
        rows, tokens = x_BTD.shape[:2]
        modality_T = np.repeat(np.arange(len(names)), tokens // len(names))
        here_BT = here_BM1[..., 0][:, modality_T]
        layers = {}
        for i in range(self.depth):
            attention = AttentionBlock(self.num_heads, name=f"attention_{i}")
            x_BTD = attention(x_BTD[:, None], here_BT[:, None], train=train)[:, 0]
            moe = MoE(
                self.moe,
                len(names),
                out=self.width,
                losses=tuple(sorted(self.aux_weights)),
                name=f"moe_{i}",
            )
            y_ND, layers[f"moe_{i}"] = moe(
                nn.LayerNorm(name=f"norm_{i}")(x_BTD).reshape(-1, self.width),
                valid_N=(here_BT & (batch.weight > 0)[:, None]).reshape(-1),
                modality_N=np.tile(modality_T, rows),
                num_rows=rows,
                train=train,
            )
            x_BTD += y_ND.reshape(x_BTD.shape)
        share_BT = here_BT / jnp.maximum(here_BT.sum(1, keepdims=True), 1)
        h_BD = nn.LayerNorm(name="norm")(jnp.einsum("btd,bt->bd", x_BTD, share_BT))
        logits = TaskHeads(self.data.tasks, name="head")(h_BD)
        losses = task_losses.over_layers(layers, self.aux_weights)
        return Outputs(logits=logits, aux_losses=losses, moe=layers)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """Task losses and weighted losses of the layers."""
        del step
        return task_losses.objective(self.data, out, batch, self.aux_weights)
