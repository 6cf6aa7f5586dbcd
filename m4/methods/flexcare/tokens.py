"""Any modality as a sequence of tokens without a summary (FlexCare's unimodal extractors).

Letters: B rows, L tokens, T positions, V views, f features, D model width.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import torch_uniform
from m4.nn.encoders.modalities import clean_table, known, stack_series
from m4.nn.encoders.query_tokens import impute
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Batch, Stream, Tokens

KINDS = ("series", "vectors", "table", "codes", "text", "image")


def data_tokens(
    data: DataSpec, batch: Batch, width: int, patch: int
) -> tuple[Array, Array, np.ndarray]:
    """Tokens of all modalities [B, L, D], their mask, and whose they are, i[L].

    Parameters are by the modalities' names; called inside a compact method.
    """
    parts = [
        TokenEncoder(m, width, data.hours, patch, name=m.name)(batch.inputs[m.name])
        for m in data.modalities
    ]
    owner_L = np.repeat(np.arange(len(parts)), [part.x.shape[1] for part in parts])
    x_BLD = jnp.concatenate([part.x for part in parts], axis=1)
    return x_BLD, jnp.concatenate([part.mask for part in parts], axis=1), owner_L


class TokenEncoder(nn.Module):
    """One affine map per token, plus learned positions that start at 0.

    A series becomes one token per hour, from the last values and flags of what was observed in
    the hour; vectors one each; a table one; codes and words one each; an image one per patch of
    `patch` x `patch` pixels. Raises ValueError for other kinds.
    """

    modality: ModalitySpec
    features: int
    hours: float
    patch: int = 16

    @nn.compact
    def __call__(self, stream: Stream) -> Tokens:
        """Tokens [B, L, D]; absent positions are masked, and finite whatever they hold."""
        kind = self.modality.kind
        if kind not in KINDS:
            raise ValueError(
                f"modality {self.modality.name}: no tokens for kind {kind!r}; known: {KINDS}"
            )
        mask_BT = stream.mask & stream.present[:, None]
        if kind == "image":
            x_BLD, mask_BL = self._patches(stream.values, mask_BT)
        elif kind in ("codes", "text"):
            vocab = known(self.modality.vocab, "vocab")
            code_BT = jnp.clip(jnp.where(mask_BT, stream.values, 0), 0, vocab - 1)
            x_BLD = nn.Embed(vocab, self.features, name="embed")(code_BT)
            mask_BL = mask_BT
        else:
            x_BLf, mask_BL = self._rows(stream, mask_BT)
            init = torch_uniform(x_BLf.shape[-1])
            dense = nn.Dense(self.features, kernel_init=init, bias_init=init, name="project")
            x_BLD = dense(x_BLf)
        shape = (x_BLD.shape[1], self.features)
        return Tokens(x_BLD + self.param("position", nn.initializers.zeros, shape), mask_BL)

    def _rows(self, stream, mask_BT) -> tuple[Array, Array]:
        """Features [B, L, f] of every token of a series, vectors or a table."""
        kind = self.modality.kind
        if kind == "vectors":
            return jnp.where(mask_BT[..., None], stream.values, 0).astype(jnp.float32), mask_BT
        if kind == "table":
            return jnp.concatenate(clean_table(stream), -1)[:, None], mask_BT
        hours = max(1, round(self.hours))
        grid = impute(stack_series([stream], hours=self.hours), hours)
        mask_BL = jnp.broadcast_to(stream.present[:, None], (stream.present.shape[0], hours))
        return jnp.concatenate(grid, -1)[:, 0], mask_BL

    def _patches(self, values, mask_BV) -> tuple[Array, Array]:
        """Patches of all views, row by row."""
        x = jnp.where(mask_BV[..., None, None, None], values, 0).astype(jnp.float32)
        x = x / 255 if values.dtype == jnp.uint8 else x
        size = tuple(min(self.patch, n) for n in x.shape[2:4])
        flat = rearrange(x, "b v h w c -> (b v) h w c")
        conv = nn.Conv(
            self.features, size, size, "VALID", kernel_init=torch_uniform(), name="project"
        )
        x_BLD = rearrange(conv(flat), "(b v) h w d -> b (v h w) d", b=x.shape[0])
        return x_BLD, jnp.repeat(mask_BV, x_BLD.shape[1] // mask_BV.shape[1], axis=1)
