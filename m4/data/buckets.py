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

from collections.abc import Sequence

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
