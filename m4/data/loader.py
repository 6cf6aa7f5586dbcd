"""Batches for training and evaluation.

The position in the training data is the step, nothing else: global batch s holds elements
s*G .. s*G + G - 1 of an endless stream that is one fresh permutation of the split per epoch, and
process p of P takes the p-th of P equal blocks of it. So the order is a function of (seed, step)
alone, whatever the number of processes or of restarts, and to resume is to name the step.

`order` rules the first `order_epochs` epochs (Flex-MoE's warm-up): 'complete_first' sorts rows by
the number of present modalities, most first, and 'complete_last' the other way round;
'complete_only' draws complete rows alone, again and again. With `streams` every row is there for
one task (`m4.data.streams`), and epochs are those of each task.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np

from m4.data import batch as batches
from m4.data.store import Store, allocate
from m4.data.streams import Streams
from m4.types import Batch

Transform = Callable[[Batch, np.random.Generator], Batch]
THREADS = 2
PREFETCH = 4  # batches
ORDERS = ("shuffled", "complete_first", "complete_last", "complete_only")
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

        Raises:
          ValueError: a batch that is larger than the split or cannot be divided, an unknown
            order, no complete row where only such are asked for, impossible streams.
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
        self._order, self._order_epochs, self._streams = order, order_epochs, None
        if order not in ORDERS:
            raise ValueError(f"order={order!r}; choose one of {', '.join(ORDERS)}")
        self._missing_N = _num_missing(store) if order != "shuffled" and order_epochs else None
        if order == "complete_only" and order_epochs and self._missing_N.all():
            raise ValueError("order='complete_only': no training row has all modalities")
        if streams != "none":
            names, labelled_KN = store.spec.task_names, _labelled(store)
            self._streams = Streams(
                names, labelled_KN, batch_size, seed, how=streams, ratio=stream_ratio
            )

    def _permutation(self, epoch: int) -> np.ndarray:
        shuffled = np.random.default_rng((self._seed, epoch)).permutation(len(self.store))
        if self._missing_N is None or epoch >= self._order_epochs:
            return shuffled
        if self._order == "complete_only":
            return np.resize(shuffled[self._missing_N[shuffled] == 0], len(shuffled))
        sign = 1 if self._order == "complete_first" else -1
        return np.argsort(sign * self._missing_N, kind="stable")

    def _take(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows i64 and tasks i32 (-1: all) of this process at `step`."""
        start = step * self.batch_size + self._offset
        place = np.arange(start, start + self._block)
        if self._streams is not None:
            return self._streams.take(place)
        epoch, position = divmod(place, len(self.store))
        rows = [self._epoch(int(e))[position[epoch == e]] for e in np.unique(epoch)]
        return np.concatenate(rows), np.full(self._block, -1, np.int32)

    def indices(self, step: int) -> np.ndarray:
        """int64 rows of the split that this process takes at `step`."""
        return self._take(step)[0]

    def batch(self, step: int) -> Batch:
        """The batch of one step; any step, in any order."""
        uid, task = self._take(step)
        rows = self.store.read(uid)
        batch = batches.assemble(self.store.spec, rows, uid, np.ones(len(uid)))
        batch = batch.replace(task=task)
        if self._transform is not None:
            rng = np.random.default_rng((self._seed, step))
            batch = batches.finish(self.store.spec, self._transform(batch, rng))
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
    store: Store, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every record of the split once, in order, in batches of one shape.

    The last batch is filled up with empty rows (uid -1, weight 0, nothing present). Process p
    takes the p-th block of every global batch, so all processes see the same number of batches.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} cannot be divided over {process_count}")
    block = batch_size // process_count
    for start in range(process_index * block, _round_up(len(store), batch_size), batch_size):
        uid = np.arange(start, min(start + block, len(store)))
        rows = store.read(uid)
        if len(uid) < block:
            filler = allocate(store.spec, block - len(uid))
            rows = {key: np.concatenate([array, filler[key]]) for key, array in rows.items()}
        number = np.arange(block)
        real = number < len(uid)
        yield batches.assemble(store.spec, rows, np.where(real, start + number, -1), real)


def _num_missing(store: Store) -> np.ndarray:
    """Absent modalities of every row."""
    columns = store.columns([f"{name}/present" for name in store.spec.modality_names])
    return len(columns) - np.sum([*columns.values()], axis=0)


def _labelled(store: Store) -> np.ndarray:
    """bool[K, N]: the row carries a label of the task, and the modalities that the task needs."""
    masks = store.columns([f"y/{task.name}/mask" for task in store.spec.tasks])
    known = [mask.reshape(len(store), -1).any(-1) for mask in masks.values()]
    for number, task in enumerate(store.spec.tasks):
        for present in store.columns([f"{name}/present" for name in task.needs]).values():
            known[number] = known[number] & present
    return np.stack(known)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
