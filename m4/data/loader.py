"""Batches for training and evaluation.

The position in the training data is the step, nothing else: global batch s holds elements
s*G .. s*G + G - 1 of an endless stream that is one fresh permutation of the split per epoch, and
process p of P takes the p-th of P equal blocks of it. So the order is a function of (seed, step)
alone, whatever the number of processes or of restarts, and to resume is to name the step.
Which elements those are is said by `m4.data.sampling`.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from m4.data import batch as batches
from m4.data import buckets as ladders
from m4.data.sampling import Sampling
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
        sampling: Sampling | None = None,
        transform: Transform | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Set up the order; nothing is read before `iter`.

        Args:
          store: the split.
          batch_size: rows of the global batch.
          seed: key of the order and of the transforms.
          sampling: which rows are drawn when; shuffled ones by default.
          transform: applied to every batch with a generator that depends on (seed, step) alone
            (see `m4.data.regularise`).
          process_index: this process.
          process_count: processes that share the global batch; must divide `batch_size`.

        Raises:
          ValueError: a batch that is larger than the split or cannot be divided, impossible
            sampling.
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
        block = batch_size // process_count
        self._own = slice(process_index * block, (process_index + 1) * block)
        self._sampler = (sampling or Sampling()).over(store, batch_size, seed)
        self.specs = self._sampler.specs  # of the batches: one per bucket, the last is the whole

    def indices(self, step: int) -> np.ndarray:
        """int64 rows of the split that this process takes at `step`."""
        return self._sampler.take(step, self._own)[0]

    def batch(self, step: int) -> Batch:
        """The batch of one step; any step, in any order."""
        uid, task, spec = self._sampler.take(step, self._own)
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
