"""Batches for training and evaluation.

The position in the training data is the step, nothing else: global batch s holds elements
s*G .. s*G + G - 1 of an endless stream that is one fresh permutation of the split per epoch, and
process p of P takes the p-th of P equal blocks of it. So the order is a function of (seed, step)
alone, whatever the number of processes or of restarts, and to resume is to name the step.

`order` rules the first `order_epochs` epochs (Flex-MoE's warm-up): 'complete_first' sorts rows by
the number of present modalities, most first, and 'complete_last' the other way round;
'complete_only' draws complete rows alone, again and again. With `streams` every row is there for
one task (`m4.data.streams`), and epochs are those of each task. With `buckets` rows of similar
length travel together (`m4.data.buckets`).
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np

from m4.data import batch as batches
from m4.data import buckets as ladders
from m4.data.store import Store, allocate
from m4.data.streams import ORDERS, Streams
from m4.specs import DataSpec
from m4.types import Batch

Transform = Callable[[Batch, np.random.Generator], Batch]
THREADS = 2
PREFETCH = 4  # batches
_ENDLESS = 2**40  # steps


class TrainLoader:
    """Endless, shuffled, resumable stream of training batches for one process."""

    def __init__(
        self,
        store: Store,
        batch_size: int,
        seed: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
        transform: Transform | None = None,
        order: str = "shuffled",
        order_epochs: int = 0,
        streams: str = "none",
        stream_ratio: Mapping[str, float] | None = None,
        buckets: Sequence[int] = (),
    ):
        """Set up the order; nothing is read before `iter`.

        Args:
          store: the split.
          batch_size: rows of the global batch.
          seed: key of the order and of the transforms.
          process_index: this process.
          process_count: processes that share the global batch; must divide `batch_size`.
          transform: applied to every batch with a generator that depends on (seed, step) alone
            (see `m4.data.missing`).
          order: one of `ORDERS`, for the first `order_epochs` epochs.
          order_epochs: their number.
          streams: 'none', or how `m4.data.streams` deals rows to tasks.
          stream_ratio: relative shares of the tasks.
          buckets: lengths to which batches are cut, see `m4.data.buckets`.

        Raises:
          ValueError: a batch that is larger than the split or cannot be divided, an unknown
            order, no complete row where only such are asked for, impossible streams or buckets.
        """
        if not 0 < batch_size <= len(store):
            raise ValueError(f"batch_size={batch_size} must be within 1..{len(store)} (the split)")
        if batch_size % process_count or not 0 <= process_index < process_count:
            raise ValueError(
                f"batch_size={batch_size} cannot be divided over {process_count} processes "
                f"(this is process {process_index})"
            )
        self.store = store
        self.batch_size = batch_size
        self.steps_per_epoch = len(store) // batch_size
        self.input_wait = 0.0  # seconds that the consumer has waited, since construction
        self._seed = seed
        self._transform = transform
        self._block = batch_size // process_count
        self._offset = process_index * self._block
        self._epoch = functools.lru_cache(maxsize=4)(self._permutation)
        self._streams = _streams(store, batch_size, seed, how=streams, ratio=stream_ratio)
        self._mixed = streams in ("none", "rows")  # a batch may hold rows of several tasks
        self.specs = ladders.ladder(store.spec, buckets)  # one per bucket, the last is the whole
        self._buckets = tuple(buckets)
        self._window_steps = min(self.steps_per_epoch, ladders.WINDOW)
        self._window = functools.lru_cache(maxsize=4)(self._arranged)
        self._set_order(order, order_epochs)

    def _set_order(self, order: str, epochs: int) -> None:
        self._order, self._order_epochs = order, epochs
        if order not in ORDERS:
            raise ValueError(f"order={order!r}; choose one of {', '.join(ORDERS)}")
        if self._buckets and epochs and order in ("complete_first", "complete_last"):
            raise ValueError(f"order={order!r} sorts rows, buckets={self._buckets} do too")
        self._missing_N = _num_missing(self.store) if order != "shuffled" and epochs else None
        if order == "complete_only" and epochs and self._missing_N.all():
            raise ValueError("order='complete_only': no training row has all modalities")

    def _permutation(self, epoch: int) -> np.ndarray:
        shuffled = np.random.default_rng((self._seed, epoch)).permutation(len(self.store))
        if self._missing_N is None or epoch >= self._order_epochs:
            return shuffled
        if self._order == "complete_only":
            return np.resize(shuffled[self._missing_N[shuffled] == 0], len(shuffled))
        sign = 1 if self._order == "complete_first" else -1
        return np.argsort(sign * self._missing_N, kind="stable")

    def _drawn(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows i64 and tasks i32 (-1: all) of `count` elements of the endless stream."""
        place = np.arange(start, start + count)
        if self._streams is not None:
            return self._streams.take(place)
        epoch, position = divmod(place, len(self.store))
        rows = [self._epoch(int(e))[position[epoch == e]] for e in np.unique(epoch)]
        return np.concatenate(rows), np.full(count, -1, np.int32)

    def _arranged(self, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and tasks [W, G] and buckets [W] of the global batches of a window."""
        size = self._window_steps * self.batch_size
        uid, task = self._drawn(window * size, size)
        bucket = ladders.assign(self._buckets, self.store.longest[uid])
        rng = np.random.default_rng((self._seed, window, 0, 1))  # no other draw has this key
        kind = np.full_like(task, -1) if self._mixed else task
        order = ladders.arrange(bucket, kind, self.batch_size, rng)
        return uid[order], task[order], bucket[order].max(-1)

    def _take(self, step: int) -> tuple[np.ndarray, np.ndarray, DataSpec]:
        """Rows and tasks of this process at `step`, and the schema they are cut to."""
        if not self._buckets:
            start = step * self.batch_size + self._offset
            return *self._drawn(start, self._block), self.store.spec
        window, number = divmod(step, self._window_steps)
        uid, task, bucket = self._window(window)
        own = slice(self._offset, self._offset + self._block)
        return uid[number, own], task[number, own], self.specs[bucket[number]]

    def indices(self, step: int) -> np.ndarray:
        """int64 rows of the split that this process takes at `step`."""
        return self._take(step)[0]

    def batch(self, step: int) -> Batch:
        """The batch of one step; any step, in any order."""
        uid, task, spec = self._take(step)
        rows = self.store.read(uid, spec)
        batch = batches.assemble(spec, rows, uid, np.ones(len(uid)))
        batch = batch.replace(task=task)
        if self._transform is not None:
            rng = np.random.default_rng((self._seed, step))
            batch = batches.finish(spec, self._transform(batch, rng))
        return batch

    def iter(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches from `start_step` on, prefetched by a few threads."""
        steps = grain.MapDataset.range(start_step, _ENDLESS).map(self.batch)
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
        stream = iter(steps.to_iter_dataset(options))
        while True:
            before = time.perf_counter()
            batch = next(stream)
            self.input_wait += time.perf_counter() - before
            yield batch


def eval_batches(
    store: Store,
    batch_size: int,
    *,
    buckets: Sequence[int] = (),
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every record of the split once, in order, in batches of one shape.

    With `buckets` in the order of their length, and each batch as long as its longest row's
    bucket. The last batch is filled up with empty rows (uid -1, weight 0, nothing present).
    Process p takes the p-th block of every global batch, so all see the same number of batches.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} cannot be divided over {process_count}")
    block, specs = batch_size // process_count, ladders.ladder(store.spec, buckets)
    bucket = ladders.assign(buckets, store.longest) if buckets else np.zeros(len(store), int)
    order = np.argsort(bucket, kind="stable")
    for start in range(0, len(store), batch_size):
        whole = order[start : start + batch_size]
        spec = specs[bucket[whole].max()]
        uid = whole[process_index * block :][:block]
        rows, lacking = store.read(uid, spec), block - len(uid)
        if lacking:
            filler = allocate(spec, lacking)
            rows = {key: np.concatenate([array, filler[key]]) for key, array in rows.items()}
        uid = np.append(uid, np.full(lacking, -1))
        yield batches.assemble(spec, rows, uid, uid >= 0)


def _num_missing(store: Store) -> np.ndarray:
    """Absent modalities of every row."""
    columns = store.columns([f"{name}/present" for name in store.spec.modality_names])
    return len(columns) - np.sum([*columns.values()], axis=0)


def _streams(store: Store, batch_size: int, seed: int, *, how: str, ratio) -> Streams | None:
    if how == "none":
        return None
    names, labelled_KN = store.spec.task_names, _labelled(store)
    return Streams(names, labelled_KN, batch_size, seed, how=how, ratio=ratio)


def _labelled(store: Store) -> np.ndarray:
    """bool[K, N]: the row carries a label of the task, and the modalities that the task needs."""
    masks = store.columns([f"y/{task.name}/mask" for task in store.spec.tasks])
    known = [mask.reshape(len(store), -1).any(-1) for mask in masks.values()]
    for number, task in enumerate(store.spec.tasks):
        for present in store.columns([f"{name}/present" for name in task.needs]).values():
            known[number] = known[number] & present
    return np.stack(known)
