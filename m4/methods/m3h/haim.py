"""One vector per modality from what HAIM-MIMIC-MM gives its models (Soenksen et al. 2022).

Eleven statistics per signal, mean embeddings, table values. Source: lrsoenksen/HAIM, commit
691b883. A signal is the sequence of its observations in order of time; times themselves do not
count.

Letters: B rows, M modalities (of a kind), L observations, p width of an embedding, f features,
S statistics, N numbers of a modality, D width.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m4.nn.encoders.modalities import CodesEncoder, SeriesStack, Vectors, clean_table, gather
from m4.nn.layers import Dropout, StackedDense, StackedLayerNorm
from m4.specs import DataSpec
from m4.types import Array, Batch

NOTES = ("notes", "text")
STATISTICS = (
    "max", "min", "mean", "variance", "mean_diff", "mean_abs_diff", "max_abs_diff",
    "sum_abs_diff", "last_minus_first", "num_peaks", "slope",
)  # fmt: skip


class HaimVectors(nn.Module):
    """Vectors of all modalities in the spec's order; what absent ones hold means nothing.

    `zero_row` and `by_hour` are the authors' quirks, see `statistics` and `mean`.
    """

    data: DataSpec
    width: int
    dropout: float = 0.0
    zero_row: bool = False
    by_hour: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Array:
        """[B, M, D]. Raises ValueError for modality kinds without an encoder."""
        streams, tokens = gather(self.data, batch), []
        for limit, series in streams.series.items():
            x_BMfS = statistics(series, zero_row=self.zero_row)
            x_BMN = rearrange(x_BMfS, "b m f s -> b m (f s)")
            tokens.append(self._embed(f"series_{limit}", x_BMN, train))
        for name, x in streams.vectors.items():
            timed = "hour" if name in NOTES else "since_first"
            mean_Bp = mean(x, weight=timed if self.by_hour else "equal")
            tokens.append(self._embed(name, mean_Bp[:, None], train))
        for name, stream in streams.tables.items():
            x_Bf, _ = clean_table(stream)
            tokens.append(self._embed(name, x_Bf[:, None], train, norm=False))
        for name, stream in streams.codes.items():
            vocab = self.data.modality(name).vocab
            tokens.append(CodesEncoder(vocab, self.width, name=name)(stream)[:, None])
        vectors = streams.by_name(jnp.concatenate(tokens, 1))
        return jnp.stack([vectors[name] for name in self.data.modality_names], 1)

    def _embed(self, name: str, x_BMN: Array, train: bool, norm: bool = True) -> Array:
        """Layer norm, affine, GELU, dropout, affine; parameters per modality of the stack."""
        num = x_BMN.shape[1]
        if norm:  # not for tables: a single value would be normalised away
            x_BMN = StackedLayerNorm(num, name=f"{name}_norm")(x_BMN)
        h = nn.gelu(StackedDense(self.width, num, name=f"{name}_up")(x_BMN))
        h = Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(h)
        return StackedDense(self.width, num, name=f"{name}_down")(h)


def mean(x: Vectors, *, weight: Literal["equal", "hour", "since_first"]) -> Array:
    """Mean vector, [B, p]; 0 without any.

    As released, notes are weighted by the 'hour' since the start of the window, images by the time
    since the first one. A vector of weight 0 does not count; if there is no other the mean is 0.
    """
    weight_BL = jnp.ones_like(x.times) if weight == "equal" else x.times
    if weight == "since_first":
        weight_BL -= jnp.where(x.mask, x.times, jnp.inf).min(1, keepdims=True)
    weight_BL = jnp.where(x.mask, weight_BL, 0.0)
    total_B1 = weight_BL.sum(1, keepdims=True)
    return jnp.einsum("blp,bl->bp", x.values, weight_BL) / jnp.where(total_B1 > 0, total_B1, 1.0)


def statistics(series: SeriesStack, *, zero_row: bool) -> Array:
    """[B, M, f, S] in the order of `STATISTICS`; 0 for a feature never observed.

    `zero_row` appends a zero to every signal before anything is computed, as the authors' code
    does: the minimum is then never above 0, last - first is -first, and slopes bend. Their zero is
    in raw units; here it is in those of the series (0 is the mean after z-scoring).
    """
    # Observations of every feature moved to the front, [B, M, f, L], and their number.
    seen = jnp.swapaxes(series.observed, -1, -2)
    x = jnp.where(seen, jnp.swapaxes(series.values, -1, -2), 0.0)
    x = jnp.take_along_axis(x, jnp.argsort(~seen, axis=-1, stable=True), -1)
    count = seen.sum(-1)
    if zero_row:
        x = jnp.pad(x, ((0, 0),) * 3 + ((0, 1),))  # whatever follows the last observation is 0
        count = count + 1
    index = jnp.arange(x.shape[-1])
    valid = index < count[..., None]
    step_valid = index[1:] < count[..., None]
    num = jnp.maximum(count, 1).astype(jnp.float32)
    num_steps = jnp.maximum(count - 1, 1).astype(jnp.float32)
    mean = x.sum(-1) / num
    centred = jnp.where(valid, x - mean[..., None], 0.0)
    step = jnp.where(step_valid, x[..., 1:] - x[..., :-1], 0.0)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[..., None], -1)[..., 0]
    offset = jnp.where(valid, index - (num[..., None] - 1) / 2, 0.0)
    columns = (
        jnp.where(valid, x, -jnp.inf).max(-1),
        jnp.where(valid, x, jnp.inf).min(-1),
        mean,
        jnp.square(centred).sum(-1) / num,
        step.sum(-1) / num_steps,
        jnp.abs(step).sum(-1) / num_steps,
        jnp.abs(step).max(-1, initial=0.0),
        jnp.abs(step).sum(-1),
        last - x[..., 0],
        num_peaks(step),
        (offset * centred).sum(-1) / jnp.maximum(jnp.square(offset).sum(-1), 1e-6),
    )
    seen = count > (1 if zero_row else 0)
    return jnp.stack([jnp.where(seen, c, 0.0).astype(jnp.float32) for c in columns], -1)


def num_peaks(step: Array) -> Array:
    """Local maxima of sequences from their differences [..., L - 1]; a plateau counts once.

    As scipy.signal.find_peaks: the ends are no peaks.
    """
    sign = jnp.sign(step)
    place = jnp.where(sign != 0, jnp.arange(sign.shape[-1]), -1)
    newest = jax.lax.cummax(place, axis=sign.ndim - 1)
    way = jnp.where(newest >= 0, jnp.take_along_axis(sign, jnp.maximum(newest, 0), -1), 0.0)
    return ((way[..., :-1] > 0) & (sign[..., 1:] < 0)).sum(-1).astype(jnp.float32)
