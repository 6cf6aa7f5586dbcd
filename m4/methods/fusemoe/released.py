"""FuseMoE as its authors' code computes it (aaronhan223/FuseMoE, c5acf6f), defects included.

Each defect has a function or a comment of its own below; docs/methods/fusemoe.md names the test of
each. Use it to study the published numbers.

Letters: B rows (patients), M modalities in the spec's order, Q query times, D width, U = Q D.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.methods.fusemoe.authors import AuthorsFuseMoE, PatientMoE
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import SeriesStack, Vectors, gather
from m4.specs import DataSpec
from m4.types import Array, Batch, MoeAux

NOTES: tuple[str, ...] = ("notes", "text")  # modalities whose times run backwards
TIME_HEADS = 8  # of attention over times, whatever `num_heads`
FLOOR = float(np.finfo(float).eps)  # what the release takes the logarithm of instead of 0
LIFT = 2.0**60  # PyTorch keeps numbers down to 2^-149, where XLA knows none below 2^-126


class ReleasedFuseMoE(AuthorsFuseMoE):
    """Logits of a row depend on the others that count; evaluation needs the rng 'gate', too.

    The release computes balance losses and never adds them: without `aux_weights`, nor does this.
    `embed_time` must be a multiple of `TIME_HEADS`, `width` of `num_heads`.
    """

    eval_rngs: ClassVar[tuple[str, ...]] = ("gate",)  # noise is drawn in evaluation, too

    def embed(self, batch: Batch, present_BM: Array, valid_B: Array, train: bool) -> Array:
        """All modalities at the query times, absent ones zeros (`module.py`)."""
        streams = gather(self.data, batch)
        streams = streams.replace(vectors=released_times(streams.vectors, self.data.hours))
        x_BMQD = self.on_query_times(streams, train, num_heads=TIME_HEADS, impute=impute_released)
        type_MD, position_QD = self.types_and_positions()
        present = present_BM | ~valid_B[:, None]  # what only fills up a batch lacks nothing
        x_BMQD += released_types(self.data, type_MD, present)[:, None]
        if x_BMQD.shape[1] > 2:  # models of two modalities know nothing of missing ones
            x_BMQD = jnp.where(present_BM[..., None, None], x_BMQD, 0.0)
        first = jnp.arange(self.num_queries)[:, None] == 0  # a padding index: no gradient
        position_QD = jnp.where(first, jax.lax.stop_gradient(position_QD), position_QD)
        return self.width**0.5 * x_BMQD + position_QD

    def route(
        self, name: str, u_BMQD: Array, routing: Mapping[str, Array], train: bool
    ) -> tuple[Array, MoeAux]:
        """Rows that mix patients, with noise in evaluation, too."""
        moe = released_layer(self.moe, tuple(sorted(self.aux_weights)), name=name)
        y_BMU, aux = moe(mixing_flatten(u_BMQD, routing["valid_B"]), train=True, **routing)
        return mixing_unflatten(y_BMU, routing["valid_B"], self.num_queries), aux


def released_layer(options: MoEOptions, losses: tuple[str, ...], *, name: str) -> PatientMoE:
    """Experts end in a softmax, mixtures are taken to log space; top_k 1 has constant weight 1.

    Routers start at zero, and those of 'permod' and 'disjoint' stay there: the authors keep them in
    a Python list, outside the module's parameters, so they are neither trained nor saved, and
    routing is random. Raises ValueError for another `options.output`.
    """
    if options.output not in (None, "softmax"):
        raise ValueError(f"output={options.output!r}: released experts end in 'softmax'")
    output = f"{__name__}:lifted_softmax"
    options = dataclasses.replace(options.with_router(normalise="after"), output=output)
    fixed = options.share != "joint"
    return PatientMoE(options, losses, nn.initializers.zeros, fixed, log_mixture, name=name)


def lifted_softmax(x: Array) -> Array:
    """`LIFT` times the softmax, from half exponents: as far below 1 as PyTorch's, and farther."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    half = jnp.exp(0.5 * (x - jax.lax.stop_gradient(x.max(-1, keepdims=True))))
    power = jnp.square(LIFT**0.5 * half)
    return power / (power.sum(-1, keepdims=True) / LIFT)


def log_mixture(y_NO: Array) -> Array:
    """Logarithm of a mixture of softmax outputs that are `LIFT` times too large.

    What float32 rounds to 0 in PyTorch is the authors' floor.
    """
    y_NO = jnp.where(y_NO <= LIFT * 2.0**-150, LIFT * FLOOR, y_NO)
    large = y_NO > 1.0
    lowered = jnp.log(jnp.where(large, LIFT, y_NO)) - jnp.log(LIFT)
    return jnp.where(large, jnp.log(jnp.where(large, y_NO / LIFT, 1.0)), lowered)


def mixing_flatten(x_BMQD: Array, valid_B: Array) -> Array:
    """[B, M, U]: reshapes time-major data of the rows that count to rows without a transpose.

    With more than one patient, a row then holds time steps of several of them.
    """
    (row_BQ, query_BQ), _ = _mixing(valid_B, x_BMQD.shape[2])
    return rearrange(x_BMQD[row_BQ, :, query_BQ], "b q m d -> b m (q d)")


def mixing_unflatten(y_BMU: Array, valid_B: Array, num_queries: int) -> Array:
    """Inverse of `mixing_flatten` on the rows that count."""
    y_BMQD = rearrange(y_BMU, "b m (q d) -> b m q d", q=num_queries)
    _, (row_BQ, part_BQ) = _mixing(valid_B, num_queries)
    return rearrange(y_BMQD[row_BQ, :, part_BQ], "b q m d -> b m q d")


def _mixing(valid_B: Array, num_queries: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Whose query is part q of row b after the reshape, and where query q of row b is then.

    Places are counted among the rows that count: the authors' last batch is a smaller one.
    """
    count, place_B1 = jnp.maximum(valid_B.sum(), 1), (jnp.cumsum(valid_B) - 1)[:, None]
    row_B, query_Q = jnp.argsort(~valid_B, stable=True), jnp.arange(num_queries)
    flat_BQ = place_B1 * num_queries + query_Q  # in the order (query, row), as time-major data lie
    there_BQ = query_Q * count + place_B1
    return (
        (row_B[flat_BQ % count], flat_BQ // count),
        (row_B[there_BQ // num_queries], there_BQ % num_queries),
    )


def released_times(vectors: Mapping[str, Vectors], hours: float) -> dict[str, Vectors]:
    """Times of notes reversed, of images and ECGs in hours instead of windows."""
    return {
        name: x.replace(times=1.0 - x.times if name in NOTES else x.times * hours)
        for name, x in vectors.items()
    }


def released_types(data: DataSpec, type_MD: Array, present_BM: Array) -> Array:
    """Type rows; ECG takes row 1 (text's) if any patient of the batch lacks it."""
    if "ecg" not in data.modality_names or len(type_MD) == 1:
        return type_MD
    m = data.modality_names.index("ecg")
    row_D = jnp.where(present_BM[:, m].all(), type_MD[m], type_MD[1])
    return jnp.where(np.arange(len(type_MD))[:, None] == m, row_D, type_MD)


def impute_released(series: SeriesStack, num_bins: int) -> tuple[Array, Array]:
    """The hourly imputation with its three defects.

    A bin without a row stays 0 and breaks the chain; a later row of the same bin in which a
    feature is unobserved overwrites the bin's value by the previous bin's; bin 0 reads the last
    bin. Returns values and observed flags, [B, M, num_bins, f].
    """
    bins = jnp.floor(series.times * num_bins).astype(jnp.int32)

    def row(carry, inputs):
        value, flag = carry
        x, seen, index, valid = inputs
        here, before = valid & (index < num_bins), value[index - 1]
        now = jnp.where(seen, x, jnp.where(before != 0, before, value[index]))
        value = value.at[index].set(jnp.where(here, now, value[index]))
        return (value, flag.at[index].set(jnp.where(here & seen, 1.0, flag[index]))), None

    def one(x, seen, index, valid):
        empty = jnp.zeros((num_bins, x.shape[-1]))
        return jax.lax.scan(row, (empty, empty), (x, seen, index, valid))[0]

    return jax.vmap(jax.vmap(one))(series.values, series.observed, bins, series.mask)
