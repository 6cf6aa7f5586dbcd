"""Batches for training and evaluation.

The position in the training data is the step, nothing else: global batch s holds elements
s*G .. s*G + G - 1 of an endless stream that is one fresh permutation of the split per epoch, and
process p of P takes the p-th of P equal blocks of it. So the order is a function of (seed, step)
alone, whatever the number of processes or of restarts, and to resume is to name the step.
"""

import functools
import time
from collections.abc import Callable, Iterator

import grain
import numpy as np

from m4.data import batch as batches
from m4.data.store import Store, allocate
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

        Raises:
          ValueError: a batch that is larger than the split or cannot be divided.
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

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self.store))

    def indices(self, step: int) -> np.ndarray:
        """int64 rows of the split that this process takes at `step`."""
        start = step * self.batch_size + self._offset
        epoch, position = divmod(np.arange(start, start + self._block), len(self.store))
        return np.concatenate([self._epoch(int(e))[position[epoch == e]] for e in np.unique(epoch)])

    def batch(self, step: int) -> Batch:
        """The batch of one step; any step, in any order."""
        uid = self.indices(step)
        rows = self.store.read(uid)
        batch = batches.assemble(self.store.spec, rows, uid, np.ones(len(uid)))
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


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
