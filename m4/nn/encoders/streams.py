"""A batch's modalities, cleaned and grouped by kind: what every encoder reads.

What was not measured is 0 from here on, replaced rather than multiplied: NaN and infinity in
unobserved entries must not survive. Times become shares of the window.

Groups come in a fixed order, timed kinds first. Whoever stacks tokens in it takes their modalities
from `Streams.modality`, or asks for them `by_name`.

Letters: B rows, M modalities, L observations, f features, p width of a vector.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import flax.struct
import jax.numpy as jnp

from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Batch, Stream

T = TypeVar("T")
KINDS = ("series", "vectors", "table", "codes", "text")


class SeriesStack(flax.struct.PyTreeNode):
    """Series modalities padded to common lengths. Unobserved values and padded times are 0."""

    values: Array  # f32[B, M, L, f]
    observed: Array  # bool[B, M, L, f]
    times: Array  # f32[B, M, L], windows
    mask: Array  # bool[B, M, L]
    present: Array  # bool[B, M]


class Vectors(flax.struct.PyTreeNode):
    """Time-stamped embeddings (notes, images, ECGs): zeros outside the mask."""

    values: Array  # f32[B, L, p]
    mask: Array  # bool[B, L]
    times: Array  # f32[B, L], windows


class Streams(flax.struct.PyTreeNode):
    """Cleaned modalities of a batch by kind, in the order of these fields.

    Series of similar length are stacked and encoded as one: as many graphs to compile as there are
    powers of 4 among the lengths, and little padding (one stack would triple the work of the
    PhysioNet 2012 schema, whose twelve series have 2 to 132 steps).
    """

    series: dict[int, SeriesStack]  # by length limit, a power of 4
    vectors: dict[str, Vectors]
    tables: dict[str, Stream]
    codes: dict[str, Stream]  # then text: a bag of tokens
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    modality: tuple[int, ...] = flax.struct.field(pytree_node=False)  # their places in the spec

    @property
    def num_timed(self) -> int:
        """Number of modalities with times; they come first."""
        return len(self.names) - len(self.tables) - len(self.codes)

    def by_name(self, x_BM: Array) -> dict[str, Array]:
        """[B, M, ...] in the order of `names` -> name -> [B, ...]."""
        return {name: x_BM[:, m] for m, name in enumerate(self.names)}


def gather(data: DataSpec, batch: Batch) -> Streams:
    """The modalities of `data`. Raises ValueError for kinds without an encoder."""
    for m in data.modalities:
        if m.kind not in KINDS:
            raise ValueError(
                f"modality {m.name}: no encoder for kind {m.kind!r}; embed it when the data are "
                f"built (kind 'vectors'), set image.file if it is an image, or choose from {KINDS}"
            )

    def rank(m: ModalitySpec):
        return KINDS.index(m.kind), length_limit(m) if m.kind == "series" else 0

    ordered = sorted(data.modalities, key=rank)

    def of(*kinds: str) -> dict[str, Stream]:
        return {m.name: batch.inputs[m.name] for m in ordered if m.kind in kinds}

    stacks: dict[int, list[Stream]] = {}
    for name, stream in of("series").items():
        stacks.setdefault(length_limit(data.modality(name)), []).append(stream)
    return Streams(
        series={limit: stack_series(stack, hours=data.hours) for limit, stack in stacks.items()},
        vectors={name: clean_vectors(s, hours=data.hours) for name, s in of("vectors").items()},
        tables=of("table"),
        codes=of("codes", "text"),
        names=tuple(m.name for m in ordered),
        modality=tuple(data.modalities.index(m) for m in ordered),
    )


def length_limit(m: ModalitySpec) -> int:
    """The smallest power of 4, from 16, that holds the series."""
    return 4 ** max(2, math.ceil(math.log(m.length, 4) - 1e-9))


def stack_series(streams: Sequence[Stream], *, hours: float) -> SeriesStack:
    """Pads to the longest and widest modality; `hours` is the window's length."""
    length = max(s.values.shape[1] for s in streams)
    width = max(s.values.shape[2] for s in streams)

    def stack(xs: Sequence[Array]) -> Array:
        size = (length, width)
        gaps = [[n - old for n, old in zip(size, x.shape[1:], strict=False)] for x in xs]
        widths = [[(0, 0), *((0, gap) for gap in some)] for some in gaps]
        return jnp.stack([jnp.pad(x, w) for x, w in zip(xs, widths, strict=True)], axis=1)

    mask = [s.mask & s.present[:, None] for s in streams]
    observed = [
        known(s.observed, "observed") & m[..., None] for s, m in zip(streams, mask, strict=True)
    ]
    values = [jnp.where(o, s.values, 0) for s, o in zip(streams, observed, strict=True)]
    times = [
        jnp.where(m, known(s.times, "times"), 0) / hours for s, m in zip(streams, mask, strict=True)
    ]
    return SeriesStack(
        values=stack(values).astype(jnp.float32),
        observed=stack(observed),
        times=stack(times).astype(jnp.float32),
        mask=stack(mask),
        present=jnp.stack([s.present for s in streams], axis=1),
    )


def clean_vectors(stream: Stream, *, hours: float) -> Vectors:
    """Replaces padding and absent rows by zeros, whatever they hold."""
    mask = stream.mask & stream.present[:, None]
    return Vectors(
        values=jnp.where(mask[..., None], stream.values, 0).astype(jnp.float32),
        mask=mask,
        times=(jnp.where(mask, known(stream.times, "times"), 0) / hours).astype(jnp.float32),
    )


def clean_table(stream: Stream) -> tuple[Array, Array]:
    """f32[B, f] with 0 (the mean) where unobserved, and bool[B, f] of what was observed."""
    seen_Bf = known(stream.observed, "observed") & stream.present[:, None]
    return jnp.where(seen_Bf, stream.values, 0).astype(jnp.float32), seen_Bf


def known(part: T | None, name: str) -> T:
    """`part`; raises ValueError where a modality lacks what its kind has."""
    if part is None:
        raise ValueError(f"a modality lacks {name!r}, which its kind needs")
    return part
