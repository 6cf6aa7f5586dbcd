"""Irregular time series -> tokens: UTDE and summary statistics.

UTDE (Zhang et al. 2023, used by FuseMoE section 3.1) encodes a series twice, by multi-time
attention over the raw observations and by imputation on a regular grid, and mixes both with
a learned gate.

Letters: B rows, M series modalities, L observations, f features, Q query points, K width of
the time embedding, D model width, S statistics.
"""

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from m4.nn.layers import StackedDense, uniform_init, xavier_init
from m4.nn.time import MultiTimeAttention, carry_forward
from m4.types import Array, Stream

STATISTICS = (
    "last", "first", "mean", "min", "max", "std", "slope", "count", "since_last", "observed",
)  # fmt: skip
UTDE_LEVELS = ("batch", "batch_seq", "batch_seq_feature")


@flax.struct.dataclass
class SeriesStack:
    """Series modalities padded to common lengths. Unobserved values and padded times are 0."""

    values: Array  # f32[B, M, L, f]
    observed: Array  # bool[B, M, L, f]
    times: Array  # f32[B, M, L], windows
    mask: Array  # bool[B, M, L]
    present: Array  # bool[B, M]


def stack_series(streams: Sequence[Stream], *, hours: float) -> SeriesStack:
    """Pads to the longest and widest modality; whatever is not observed is replaced by 0.

    Replaced, not multiplied: NaN and infinity in unobserved entries must not survive.
    """
    length = max(s.values.shape[1] for s in streams)
    width = max(s.values.shape[2] for s in streams)

    def pad(x):
        widths = [(0, 0), (0, length - x.shape[1])]
        widths += [(0, width - x.shape[2])] if x.ndim == 3 else []
        return jnp.pad(x, widths)

    mask = [s.mask & s.present[:, None] for s in streams]
    observed = [s.observed & m[..., None] for s, m in zip(streams, mask, strict=True)]
    values = [jnp.where(o, s.values, 0) for s, o in zip(streams, observed, strict=True)]
    times = [jnp.where(m, s.times, 0) / hours for s, m in zip(streams, mask, strict=True)]
    stack = lambda xs: jnp.stack([pad(x) for x in xs], axis=1)  # noqa: E731
    return SeriesStack(
        values=stack(values).astype(jnp.float32),
        observed=stack(observed),
        times=stack(times).astype(jnp.float32),
        mask=stack(mask),
        present=jnp.stack([s.present for s in streams], axis=1),
    )


def summary_statistics(series: SeriesStack) -> Array:
    """[B, M, f, S] in the order of `STATISTICS`; 0 for a feature never observed.

    The slope is per window, ridge-shrunk so that two neighbouring points give no huge value;
    count is log1p(n) / 3; `since_last` is in windows before the end, 1 if never observed.
    """
    seen = series.observed
    x = series.values
    t = series.times[..., None]
    count = seen.sum(-2).astype(jnp.float32)
    some = count > 0
    per = 1.0 / jnp.maximum(count, 1.0)
    mean = x.sum(-2) * per
    centred = jnp.where(seen, x - mean[..., None, :], 0.0)
    mean_time = jnp.where(seen, t, 0.0).sum(-2) * per
    offset = jnp.where(seen, t - mean_time[..., None, :], 0.0)
    slope = (offset * centred).sum(-2) * per / (jnp.square(offset).sum(-2) * per + 0.01)
    row = jnp.arange(x.shape[-2])[:, None]
    newest = jnp.where(seen, row, -1).max(-2, keepdims=True)
    oldest = jnp.where(seen, row, x.shape[-2]).min(-2, keepdims=True)
    pick = lambda values, index: jnp.where(seen & (row == index), values, 0.0).sum(-2)  # noqa: E731
    columns = (
        pick(x, newest),
        pick(x, oldest),
        mean,
        jnp.where(some, jnp.where(seen, x, jnp.inf).min(-2), 0.0),
        jnp.where(some, jnp.where(seen, x, -jnp.inf).max(-2), 0.0),
        jnp.sqrt(jnp.square(centred).sum(-2) * per),
        slope,
        jnp.log1p(count) / 3.0,
        1.0 - jnp.clip(pick(t, newest), 0.0, 1.0),
        some,
    )
    return jnp.stack([jnp.broadcast_to(c, mean.shape).astype(jnp.float32) for c in columns], -1)


def impute_released(series: SeriesStack, *, num_bins: int) -> tuple[Array, Array]:
    """The authors' hourly imputation with its three defects (kept for `fidelity='released'`).

    A bin without a row stays 0 and breaks the chain; a later row of the same bin in which a
    feature is unobserved overwrites the bin's value by the previous bin's; bin 0 reads the last
    bin. Returns values and observed flags, [B, M, num_bins, f].
    """
    bins = jnp.floor(series.times * num_bins).astype(jnp.int32)

    def row(carry, inputs):
        value, flag = carry
        x, seen, index, valid = inputs
        here = valid & (index < num_bins)
        before = value[(index - 1) % num_bins]
        now = jnp.where(seen, x, jnp.where(before != 0, before, value[index]))
        value = value.at[index].set(jnp.where(here, now, value[index]))
        flag = flag.at[index].set(jnp.where(here & seen, 1.0, flag[index]))
        return (value, flag), None

    def one(x, seen, index, valid):
        empty = jnp.zeros((num_bins, x.shape[-1]))
        return jax.lax.scan(row, (empty, empty), (x, seen, index, valid))[0]

    return jax.vmap(jax.vmap(one))(series.values, series.observed, bins, series.mask)


def impute(series: SeriesStack, *, num_bins: int) -> tuple[Array, Array]:
    """Last observed value, else the global mean (0 after z-scoring); flags of the bin."""
    return carry_forward(
        series.values, series.observed, series.times, series.mask, num_bins=num_bins
    )


class UTDE(nn.Module):
    """g * mTAND(observations) + (1 - g) * linear(imputed grid), FuseMoE section 3.1.

    `level` says what g depends on: `batch` one number per row from the maxima over time,
    `batch_seq` one per query, `batch_seq_feature` one per query and channel.
    """

    features: int
    num_heads: int
    num_stacks: int
    level: str = "batch"
    dropout: float = 0.0
    released_imputation: bool = False

    @nn.compact
    def __call__(self, series: SeriesStack, query_QK: Array, key_BMLK: Array, *, train) -> Array:
        """[B, M, Q, features]; parameters per modality."""
        if self.level not in UTDE_LEVELS:
            raise ValueError(f"utde level {self.level!r} is not one of {UTDE_LEVELS}")
        irregular = MultiTimeAttention(
            self.features,
            self.num_heads,
            self.num_stacks,
            self.dropout,
            append_flags=True,
            name="mtand",
        )(query_QK, key_BMLK, series.values, series.observed, train=train)
        fill = impute_released if self.released_imputation else impute
        grid = jnp.concatenate(fill(series, num_bins=query_QK.shape[0]), -1)
        regular = StackedDense(
            self.features,
            self.num_stacks,
            uniform_init(grid.shape[-1]),
            bias_init=None,
            name="imputed",
        )(grid)
        gate = self._gate(irregular, regular, train)
        return gate * irregular + (1.0 - gate) * regular

    def _gate(self, irregular, regular, train):
        both = jnp.concatenate([irregular, regular], -1)
        if self.level == "batch":
            both = both.max(-2, keepdims=True)
        both = nn.Dropout(self.dropout, deterministic=not train, name="gate_drop")(both)
        out = self.features if self.level == "batch_seq_feature" else 1
        init = xavier_init("normal")
        h = StackedDense(
            self.features, self.num_stacks, init, uniform_init(both.shape[-1]), name="gate_up"
        )(both)
        g = StackedDense(out, self.num_stacks, init, uniform_init(self.features), name="gate_out")(
            nn.relu(h)
        )
        return nn.sigmoid(g)


class SeriesSummary(nn.Module):
    """Two-layer MLP of the summary statistics -> one token per modality."""

    features: int
    num_stacks: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, statistics_BMN: Array, *, train: bool) -> Array:
        """[B, M, N] -> [B, M, features]; parameters per modality."""
        h = nn.gelu(StackedDense(2 * self.features, self.num_stacks, name="up")(statistics_BMN))
        h = nn.Dropout(self.dropout, deterministic=not train, name="drop")(h)
        return StackedDense(self.features, self.num_stacks, name="down")(h)
