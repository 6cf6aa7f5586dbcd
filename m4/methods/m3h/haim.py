"""Eleven statistics per signal, as HAIM-MIMIC-MM made them (Soenksen et al. 2022).

Source: lrsoenksen/HAIM, commit 691b883. A signal is the sequence of its observations in order of
time; times themselves do not count.

Letters: B rows, M series modalities, L observations, f features, S statistics.
"""

import jax
import jax.numpy as jnp

from m4.nn.encoders.series import SeriesStack
from m4.types import Array

STATISTICS = (
    "max", "min", "mean", "variance", "mean_diff", "mean_abs_diff", "max_abs_diff",
    "sum_abs_diff", "last_minus_first", "num_peaks", "slope",
)  # fmt: skip


def statistics(series: SeriesStack, *, zero_row: bool) -> Array:
    """[B, M, f, S] in the order of `STATISTICS`; 0 for a feature never observed.

    `zero_row` appends a zero to every signal before anything is computed, as the authors' code
    does: the minimum is then never above 0, last - first is -first, and slopes bend. Their zero is
    in raw units; here it is in those of the series (0 is the mean after z-scoring).
    """
    x, count = _compress(series)
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


def _compress(series: SeriesStack) -> tuple[Array, Array]:
    """Observations of every feature moved to the front, [B, M, f, L], and their number."""
    seen = jnp.swapaxes(series.observed, -1, -2)
    x = jnp.where(seen, jnp.swapaxes(series.values, -1, -2), 0.0)
    order = jnp.argsort(~seen, axis=-1, stable=True)
    return jnp.take_along_axis(x, order, -1), seen.sum(-1)
