"""Any modality as a vector of features, cut into P patches, as in the authors' `PatchEmbeddings`.

Letters: B rows, M modalities, F features, P patches, p features of a patch, D model width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m4 import task_losses
from m4.maths import torch_uniform
from m4.methods.flexmoe import completeness
from m4.methods.flexmoe.bank import complete
from m4.methods.flexmoe.transformer import Transformer
from m4.nn.encoders.modalities import clean_table, known, stack_series, summary_statistics
from m4.nn.encoders.volume import VolumeEncoder
from m4.nn.layers import TaskHeads, masked_mean
from m4.resolve import check_fields
from m4.specs import ModalitySpec
from m4.types import Array, Batch, Outputs, Stream


class PatchTransformer(Transformer):
    """What paper and release share: fuses up to 12 modalities of any of these kinds."""

    num_patches: int = 16  # tokens of a modality

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs rngs 'dropout' and 'gate'.

        Tokens of every modality, those of absent ones from the bank (section 3.2), layers, and
        heads on the mean token of every modality. Raises ValueError for modality kinds without an
        encoder, for impossible fields and for fewer experts than combinations of modalities.
        """
        check_fields(self, depth=1, num_patches=1)
        completeness.check_experts(self.moe.num_experts, len(self.data.modalities))
        tokens = [self._tokens(m, batch.inputs[m.name], train) for m in self.data.modalities]
        full, present_BM = self.full_modalities(), batch.present(self.data)
        columns = tuple(full.index(name) for name in self.data.modality_names)
        bank = {"columns": columns, "total": len(full)}
        x_BMPD = complete(jnp.stack(tokens, axis=1), present_BM, **bank)
        x_BMPD, moe = self.layers(x_BMPD, batch, train=train)
        h_BF = rearrange(x_BMPD.mean(2), "b m d -> b (m d)")
        heads = TaskHeads(
            self.data.tasks, two_logits=True, kernel_init=torch_uniform(), name="heads"
        )
        aux = task_losses.over_layers(moe, self.aux_weights)
        return Outputs(heads(h_BF), aux, moe)

    def full_modalities(self) -> tuple[str, ...]:
        """Those that the bank has columns for."""
        return self.data.modality_names

    def _tokens(self, m: ModalitySpec, stream: Stream, train: bool) -> Array:
        """[B, P, D]; parameters '<modality>' and, of images, '<modality>_volume'."""
        if m.kind == "image":
            x_BF = VolumeEncoder(self.width, name=f"{m.name}_volume")(stream, train=train)
        else:
            x_BF = flatten(m, stream, hours=self.data.hours)
        return PatchTokens(self.width, self.num_patches, name=m.name)(x_BF)


def flatten(modality: ModalitySpec, stream: Stream, *, hours: float) -> Array:
    """[B, F]; what was not measured is 0.

    A table is itself, a series the statistics of each feature over time, vectors their mean,
    codes and words the set of those that occur, a signal all its samples. Raises ValueError for
    images, which need an encoder.
    """
    mask_BT = stream.mask & stream.present[:, None]
    if modality.kind == "series":
        statistics = summary_statistics(stack_series([stream], hours=hours))[:, 0]
        return rearrange(jnp.clip(statistics, -6.0, 6.0), "b f s -> b (f s)")
    if modality.kind == "table":
        return clean_table(stream)[0]
    if modality.kind == "vectors":
        return masked_mean(stream.values.astype(jnp.float32), mask_BT, dim=1)
    if modality.kind in ("codes", "text"):
        vocab = known(modality.vocab, "vocab")
        code_BT = jnp.where(mask_BT, stream.values, vocab)  # that one is dropped
        return jax.nn.one_hot(code_BT, vocab).max(1)
    if modality.kind == "signal":
        values = jnp.where(mask_BT[..., None], stream.values, 0).astype(jnp.float32)
        return rearrange(values, "b t c -> b (t c)")
    raise ValueError(f"modality {modality.name}: kind {modality.kind!r} is no vector of features")


class PatchTokens(nn.Module):
    """A vector padded to P patches of equal size, one affine map shared by the patches."""

    features: int
    num_patches: int

    @nn.compact
    def __call__(self, x_BF: Array) -> Array:
        """[B, F] -> [B, P, D]."""
        size = -(-x_BF.shape[-1] // self.num_patches)
        x_BF = jnp.pad(x_BF, ((0, 0), (0, size * self.num_patches - x_BF.shape[-1])))
        x_BPp = rearrange(x_BF, "b (p f) -> b p f", p=self.num_patches)
        init = torch_uniform(size)
        return nn.Dense(self.features, kernel_init=init, bias_init=init, name="project")(x_BPp)
