"""A batch's modalities, cleaned and grouped by kind, and a summary token of each.

What was not measured is 0 from here on, replaced rather than multiplied: NaN and infinity in
unobserved entries must not survive. Times become shares of the window.

Groups come in a fixed order, timed kinds first. Whoever stacks tokens in it takes their modalities
from `Streams.modality`, or asks for them `by_name`.

Letters: B rows, M modalities, L observations, f features, p width of a vector, S statistics,
N columns, T codes, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from einops import rearrange

from m4.nn.layers import Dropout, StackedDense, masked_mean
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Batch, Stream

T = TypeVar("T")
KINDS = ("series", "vectors", "table", "codes", "text")
STATISTICS = (
    "last", "first", "mean", "min", "max", "std", "slope", "count", "since_last", "observed",
)  # fmt: skip


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
    size = [max(s.values.shape[dim] for s in streams) for dim in (1, 2)]

    def stack(name: str) -> Array:
        xs = [known(getattr(s, name), name) for s in streams]
        gaps = [[(0, n - old) for n, old in zip(size, x.shape[1:], strict=False)] for x in xs]
        return jnp.stack([jnp.pad(x, [(0, 0), *g]) for x, g in zip(xs, gaps, strict=True)], 1)

    present_BM = jnp.stack([s.present for s in streams], axis=1)
    mask_BML = stack("mask") & present_BM[..., None]
    observed_BMLf = stack("observed") & mask_BML[..., None]
    return SeriesStack(
        values=jnp.where(observed_BMLf, stack("values"), 0).astype(jnp.float32),
        observed=observed_BMLf,
        times=jnp.where(mask_BML, stack("times") / hours, 0).astype(jnp.float32),
        mask=mask_BML,
        present=present_BM,
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
    """Values with 0 (the mean) where unobserved, and flags of what was observed, f32[B, f]."""
    seen_Bf = known(stream.observed, "observed") & stream.present[:, None]
    values_Bf = jnp.where(seen_Bf, stream.values, 0).astype(jnp.float32)
    return values_Bf, seen_Bf.astype(jnp.float32)


def known(part: T | None, name: str) -> T:
    """`part`; raises ValueError where a modality lacks what its kind has."""
    if part is None:
        raise ValueError(f"a modality lacks {name!r}, which its kind needs")
    return part


# --- tokens ---------------------------------------------------------------------------------------


class SummaryTokens(nn.Module):
    """A token of every modality, timed ones from statistics, and those statistics themselves."""

    data: DataSpec
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> tuple[Array, Array]:
        """Tokens [B, M, D] in the order of `streams`; of series and tables, columns [B, N]."""
        tokens, columns = [], []
        for limit, series in streams.series.items():
            statistics = jnp.clip(summary_statistics(series), -6.0, 6.0)
            x_BMN = rearrange(statistics, "b m f s -> b m (f s)")
            sizes = self.width, 2 * self.width, self.dropout, x_BMN.shape[1]
            tokens.append(TwoLayers(*sizes, name=f"series_{limit}")(x_BMN, train=train))
            columns.append(rearrange(x_BMN, "b m n -> b (m n)"))
        for name, x in streams.vectors.items():
            token_BD = TwoLayers(self.width, self.width, name=name)(vectors_summary(x), train=train)
            tokens.append(token_BD[:, None])
        for stream in streams.tables.values():
            columns += clean_table(stream)
        static = StaticTokens(self.data, self.width, self.dropout, name="static")
        tokens += [x_BD[:, None] for x_BD in static(streams, train=train)]
        nothing = jnp.zeros((tokens[0].shape[0], 0))
        return jnp.concatenate(tokens, 1), jnp.concatenate([nothing, *columns], -1)


class StaticTokens(nn.Module):
    """Tables, then codes, then text -> one token each."""

    data: DataSpec
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> list[Array]:
        """[B, D] per modality without times."""
        tokens = []
        for name, stream in streams.tables.items():
            x_Bf = jnp.concatenate(clean_table(stream), -1)  # values and flags
            encoder = TwoLayers(self.width, self.width, self.dropout, name=name)
            tokens.append(encoder(x_Bf, train=train))
        for name, stream in streams.codes.items():
            vocab = self.data.modality(name).vocab
            tokens.append(CodesEncoder(vocab, self.width, name=name)(stream))
        return tokens


class TwoLayers(nn.Module):
    """W2 drop(GELU(W1 x)); of a stack of modalities with parameters of each."""

    features: int
    hidden: int
    dropout: float = 0.0
    num_stacks: int = 0  # 0: no stack

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, N] -> [B, features], with a stack [B, M, N] -> [B, M, features]."""

        def affine(size: int, name: str) -> Callable[[Array], Array]:
            if self.num_stacks:
                return StackedDense(size, self.num_stacks, name=name)
            return nn.Dense(size, name=name)

        h = nn.gelu(affine(self.hidden, "up")(x))
        h = Dropout(self.dropout, deterministic=not train, name="drop")(h)
        return affine(self.features, "down")(h)


def vectors_summary(x: Vectors) -> Array:
    """Mean and newest vector, the log of their number and the newest time, [B, 2 p + 2]."""
    count_B1 = x.mask.sum(-1, keepdims=True).astype(jnp.float32)
    newest_BL = x.mask & (jnp.cumsum(x.mask[:, ::-1], 1)[:, ::-1] == 1)
    parts = (
        x.values.sum(1) / jnp.maximum(count_B1, 1.0),
        jnp.where(newest_BL[..., None], x.values, 0).sum(1),
        jnp.log1p(count_B1),
        jnp.where(newest_BL, x.times, 0).sum(1, keepdims=True),
    )
    return jnp.concatenate(parts, -1)


class CodesEncoder(nn.Module):
    """Mean embedding of the codes of a row and the log of their number, then an affine map."""

    vocab: int | None  # as a modality has it
    features: int

    @nn.compact
    def __call__(self, stream: Stream) -> Array:
        """i32[B, T] -> [B, D]; zeros enter the last map where a row has no code."""
        mask_BT = stream.mask & stream.present[:, None]
        vocab = known(self.vocab, "vocab")
        code_BT = jnp.clip(jnp.where(mask_BT, stream.values, 0), 0, vocab - 1)
        x_BTD = nn.Embed(vocab, self.features, name="embed")(code_BT)
        count_B1 = mask_BT.sum(-1, keepdims=True).astype(jnp.float32)
        parts = masked_mean(x_BTD, mask_BT, dim=1), jnp.log1p(count_B1)
        return nn.Dense(self.features, name="out")(jnp.concatenate(parts, -1))


def summary_statistics(series: SeriesStack) -> Array:
    """[B, M, f, S] in the order of `STATISTICS`; 0 for a feature never observed.

    The slope is per window, ridge-shrunk so that two neighbouring points give no huge value;
    count is log1p(n) / 3; `since_last` is in windows before the end, 1 if never observed.
    """
    seen, x, t = series.observed, series.values, series.times[..., None]
    count = seen.sum(-2).astype(jnp.float32)
    some = count > 0
    per = 1.0 / jnp.maximum(count, 1.0)
    mean = x.sum(-2) * per
    centred = jnp.where(seen, x - mean[..., None, :], 0.0)
    variance = jnp.square(centred).sum(-2) * per  # its root has no gradient at 0
    mean_time = jnp.where(seen, t, 0.0).sum(-2) * per
    offset = jnp.where(seen, t - mean_time[..., None, :], 0.0)
    slope = (offset * centred).sum(-2) * per / (jnp.square(offset).sum(-2) * per + 0.01)
    row = jnp.arange(x.shape[-2])[:, None]
    newest = jnp.where(seen, row, -1).max(-2, keepdims=True)
    oldest = jnp.where(seen, row, x.shape[-2]).min(-2, keepdims=True)

    def pick(values, index):
        return jnp.where(seen & (row == index), values, 0.0).sum(-2)

    columns = (
        pick(x, newest),
        pick(x, oldest),
        mean,
        jnp.where(some, jnp.where(seen, x, jnp.inf).min(-2), 0.0),
        jnp.where(some, jnp.where(seen, x, -jnp.inf).max(-2), 0.0),
        jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0),
        slope,
        jnp.log1p(count) / 3.0,
        1.0 - jnp.clip(pick(t, newest), 0.0, 1.0),
        some,
    )
    return jnp.stack([jnp.broadcast_to(c, mean.shape).astype(jnp.float32) for c in columns], -1)
