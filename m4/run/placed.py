"""A split's batches on the devices of a mesh, of which every process reads and places its part."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from m4 import sharding
from m4.data.loader import eval_batches
from m4.data.store import Store
from m4.types import Batch


def batches(
    store: Store, batch_size: int, mesh: Mesh, buckets: Sequence[int] = ()
) -> Iterator[tuple[Batch, Batch]]:
    """(what the host knows of a batch's rows, the batch on the mesh), every row once, in order.

    Every process must take all of them. One that holds all rows knows a batch as it was read; where
    each reads its block of them, all know of every row all but the values of its inputs.
    Raises ConfigError where the rows of a process are not one block.
    """
    index, count = sharding.row_block(mesh)
    block = {"process_index": index, "process_count": count}
    for own in eval_batches(store, batch_size, buckets=buckets, **block):
        placed = sharding.put_batch(own, mesh)
        every = own if count == 1 else jax.device_get(_everywhere(mesh)(_without_values(placed)))
        yield every, placed


def _without_values(batch: Batch) -> Batch:
    none: Any = None
    return batch.replace(
        inputs={
            name: stream.replace(values=none, mask=none, times=none, observed=none)
            for name, stream in batch.inputs.items()
        }
    )


@functools.cache
def _everywhere(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))
