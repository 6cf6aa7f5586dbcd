"""Buckets: batches that are cut to the length of what their rows hold.

`lengths` (12, 24) make three buckets: batches in which every ragged modality (series, vectors,
codes, text) has at most 12 positions, at most 24, or its full length. Modalities that are shorter
than a bucket stay as they are, so it is the longest ones, which cost most, that are cut. A row's
bucket is the first that holds its longest modality; a batch's is that of its longest row.

Training takes the rows of the loader's stream in windows of up to `WINDOW` batches (an epoch, if
that is less). A window's rows are sorted by bucket and dealt to batches, which come in random
order; rows that do not fill a batch of their bucket travel with the next longer one. So a window
holds exactly the rows that it would hold without buckets, each for the same task, and its order
depends on (seed, step) alone. Task streams whose batches have one task keep the task of every
step; those that mix tasks in a batch keep their ratio in every window, no longer in every batch.

Letters: N rows of a split, R = W G rows of a window, W batches of G rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from m4.specs import RAGGED_KINDS, DataSpec

WINDOW = 128  # batches that are sorted together


def ladder(spec: DataSpec, lengths: Sequence[int]) -> tuple[DataSpec, ...]:
    """The schema cut for every bucket, shortest first; the last is the whole schema.

    Raises:
      ValueError: lengths that do not increase from 1 on or are more than there are positions.
    """
    if not lengths:
        return (spec,)
    if any(low >= high for low, high in zip((0, *lengths), lengths, strict=False)):
        raise ValueError(f"buckets={tuple(lengths)}: must increase, from 1 on")
    longest = max((m.length for m in spec.modalities if m.kind in RAGGED_KINDS), default=0)
    if lengths[-1] > longest:
        raise ValueError(
            f"buckets={tuple(lengths)}: must be at most {longest}, the positions of the longest"
            f" modality of kind {', '.join(RAGGED_KINDS)}"
        )
    return *(spec.cut(length) for length in lengths if length < longest), spec


def assign(lengths: Sequence[int], longest_N: np.ndarray) -> np.ndarray:
    """i64[N]: the first bucket that holds as many positions; the last holds everything."""
    return np.searchsorted(lengths, longest_N)


def arrange(
    bucket_R: np.ndarray, kind_R: np.ndarray, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """i64[W, G]: which rows of a window make which batch.

    `kind_R` must be one number within every batch of the window as it came, and stays so: batches
    change places only with batches of their kind.
    """
    batch_WG = np.lexsort((bucket_R, kind_R)).reshape(-1, batch_size)
    kind_W = kind_R[::batch_size]
    place_W = np.lexsort((rng.permutation(len(kind_W)), kind_W))  # of the batches, kind by kind
    order_WG = np.empty_like(batch_WG)
    order_WG[place_W] = batch_WG
    return order_WG


class Bucketed:
    """Batches of rows of similar length, window by window of a stream; see the module."""

    def __init__(
        self,
        stream: Any,
        store: Any,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        mixed: bool,
    ):
        """`mixed`: batches of the `stream` (see `m4.data.sampling`) hold rows of several tasks."""
        self._stream, self._store, self._lengths = stream, store, lengths
        self._batch_size, self._seed, self._mixed = batch_size, seed, mixed
        self.specs = ladder(store.spec, lengths)  # one per bucket, the last is the whole
        self._steps = min(len(store) // batch_size, WINDOW)  # of a window
        self._window = functools.lru_cache(maxsize=4)(self._arranged)

    def take(self, step: int, own: slice) -> tuple[np.ndarray, np.ndarray, DataSpec]:
        """Rows and tasks of the `own` part of a step's batch, and the schema it is cut to."""
        window, number = divmod(step, self._steps)
        uid_WG, task_WG, bucket_W = self._window(window)
        return uid_WG[number, own], task_WG[number, own], self.specs[bucket_W[number]]

    def _arranged(self, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and tasks [W, G] and buckets [W] of the global batches of a window."""
        size = self._steps * self._batch_size
        uid_R, task_R = self._stream.take(np.arange(window * size, (window + 1) * size))
        bucket_R = assign(self._lengths, self._store.longest[uid_R])
        rng = np.random.default_rng((self._seed, window, 0, 1))  # no other draw has this key
        kind_R = np.full_like(task_R, -1) if self._mixed else task_R
        order_WG = arrange(bucket_R, kind_R, self._batch_size, rng)
        return uid_R[order_WG], task_R[order_WG], bucket_R[order_WG].max(-1)
