"""Which rows a step takes, and for which task: a function of (seed, step) alone.

A stream is endless and hands out rows by their positions in it: `Epochs` is one permutation of the
split per epoch, `m4.data.task_streams.TaskStreams` gives every row to one task. A sampler cuts a
stream into global batches: `Straight` in its order, `m4.data.buckets.Bucketed` by length.

Letters: N rows of the split, G rows of a global batch.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from m4.data.buckets import Bucketed
from m4.data.task_streams import TaskStreams
from m4.specs import DataSpec

if TYPE_CHECKING:  # a configuration is checked against `ORDERS` without what a store needs
    from m4.data.store import Store

ORDERS = ("shuffled", "complete_first", "complete_last", "complete_only")
Taken = tuple[np.ndarray, np.ndarray, DataSpec]  # rows i64, tasks i32 (-1: all), their schema


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of how training rows are drawn.

    Attributes:
      order: one of `ORDERS`, for the first `order_epochs` epochs (Flex-MoE's warm-up):
        'complete_first' sorts rows by the number of present modalities, most first,
        'complete_last' the other way round; 'complete_only' draws complete rows alone.
      order_epochs: their number.
      streams: 'none', or how `m4.data.task_streams` deals rows to tasks; epochs are then those of
        each task.
      stream_ratio: relative shares of the tasks.
      buckets: lengths to which batches are cut, see `m4.data.buckets`.
    """

    order: str = "shuffled"
    order_epochs: int = 0
    streams: str = "none"
    stream_ratio: Mapping[str, float] = dataclasses.field(default_factory=dict)
    buckets: tuple[int, ...] = ()

    def over(self, store: "Store", batch_size: int, seed: int) -> "Straight | Bucketed":
        """The sampler of a split.

        Raises:
          ValueError: an unknown order, no complete row where only such are asked for, impossible
            streams or buckets.
        """
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r}; choose one of {', '.join(ORDERS)}")
        if self.buckets and self.order_epochs and self.order in ("complete_first", "complete_last"):
            raise ValueError(f"order={self.order!r} sorts rows, buckets={self.buckets} do too")
        stream = Epochs(store, seed, self.order, self.order_epochs)
        if self.streams != "none":
            how, ratio, names = self.streams, self.stream_ratio, store.spec.task_names
            stream = TaskStreams(names, _labelled(store), batch_size, seed, how=how, ratio=ratio)
        if not self.buckets:
            return Straight(stream, store.spec, batch_size)
        mixed = self.streams in ("none", "rows")  # a batch may hold rows of several tasks
        return Bucketed(stream, store, self.buckets, batch_size, seed, mixed=mixed)


class Epochs:
    """One permutation of the split per epoch; the first `epochs` of them follow `order`."""

    def __init__(self, store: "Store", seed: int, order: str, epochs: int):
        """Raises ValueError where complete rows alone are asked for and there is none."""
        self._num_rows, self._seed = len(store), seed
        self._order, self._epochs = order, epochs if order != "shuffled" else 0
        if self._epochs:
            self._missing_N = num_missing(store)
            if order == "complete_only" and self._missing_N.all():
                raise ValueError("order='complete_only': no training row has all modalities")
        self._permutation = functools.lru_cache(maxsize=4)(self._permute)

    def take(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows i64 and tasks i32 (all -1) of increasing positions in the stream."""
        epoch, place = divmod(positions, self._num_rows)
        rows = [self._permutation(int(e))[place[epoch == e]] for e in np.unique(epoch)]
        return np.concatenate(rows), np.full(len(positions), -1, np.int32)

    def _permute(self, epoch: int) -> np.ndarray:
        shuffled = np.random.default_rng((self._seed, epoch)).permutation(self._num_rows)
        if epoch >= self._epochs:
            return shuffled
        if self._order == "complete_only":
            return np.resize(shuffled[self._missing_N[shuffled] == 0], len(shuffled))
        sign = 1 if self._order == "complete_first" else -1
        return np.argsort(sign * self._missing_N, kind="stable")


class Straight:
    """Batches in the order of a stream, each of the whole schema."""

    def __init__(self, stream: Epochs | TaskStreams, spec: DataSpec, batch_size: int):
        self._stream, self._batch_size, self.specs = stream, batch_size, (spec,)

    def take(self, step: int, own: slice) -> Taken:
        """What a process whose rows of each global batch are `own` takes at `step`."""
        start = step * self._batch_size
        positions = np.arange(start + own.start, start + own.stop)
        return *self._stream.take(positions), self.specs[0]


def num_missing(store: "Store") -> np.ndarray:
    """i64[N]: absent modalities of every row."""
    columns = store.columns([f"{name}/present" for name in store.spec.modality_names])
    return len(columns) - np.sum([*columns.values()], axis=0)


def _labelled(store: "Store") -> np.ndarray:
    """bool[K, N]: the row carries a label of the task, and the modalities that the task needs."""
    masks = store.columns([f"y/{task.name}/mask" for task in store.spec.tasks])
    known = [mask.reshape(len(store), -1).any(-1) for mask in masks.values()]
    for number, task in enumerate(store.spec.tasks):
        for present in store.columns([f"{name}/present" for name in task.needs]).values():
            known[number] = known[number] & present
    return np.stack(known)
