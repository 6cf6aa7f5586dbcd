"""Encoders of a whole batch: every modality of every kind, in one fixed order.

`Inputs` puts timed kinds first, series by length; a slot is a modality's place in that order,
and `order[slot]` its place in the `DataSpec` (its bit in a presence pattern).

Series of similar length are stacked and encoded as one: as many graphs to compile as there are
powers of 4 among the lengths, and little padding (one stack would triple the work of the
PhysioNet 2012 schema, whose twelve series have 2 to 132 steps).

Letters: B rows, M modalities (Mt timed ones), L observations, Q query times, D width, N columns.
"""

import math

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from einops import rearrange

from m4.nn.encoders.codes import CodesEncoder
from m4.nn.encoders.series import UTDE, SeriesStack, SeriesSummary, stack_series, summary_statistics
from m4.nn.encoders.table import TableEncoder
from m4.nn.encoders.vectors import VectorsEncoder, VectorsInput, VectorsSummary, clean_vectors
from m4.nn.time import TimeEmbedding, frequency_init, query_times
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Batch, Stream

KINDS = ("series", "vectors", "table", "codes", "text")


@flax.struct.dataclass
class Inputs:
    """Cleaned modalities of a batch by kind. What was not measured is 0 from here on."""

    series: dict[int, SeriesStack]  # by length limit, a power of 4
    vectors: dict[str, VectorsInput]
    tables: dict[str, Stream]
    codes: dict[str, Stream]  # then text: a bag of tokens

    @property
    def num_timed(self) -> int:
        """Slots that have tokens on the query grid."""
        return len(self.vectors) + sum(stack.mask.shape[1] for stack in self.series.values())


def order(data: DataSpec) -> list[int]:
    """Position in the spec of every slot. Raises ValueError for kinds without an encoder."""
    for m in data.modalities:
        if m.kind not in KINDS:
            raise ValueError(
                f"modality {m.name}: no encoder for kind {m.kind!r}; embed it when the data are "
                f"built (kind 'vectors'), set image.file if it is an image, or choose from {KINDS}"
            )

    def rank(i):
        m = data.modalities[i]
        return KINDS.index(m.kind), length_limit(m) if m.kind == "series" else 0

    return sorted(range(len(data.modalities)), key=rank)


def length_limit(m: ModalitySpec) -> int:
    """The smallest power of 4, from 16, that holds the series."""
    return 4 ** max(2, math.ceil(math.log(m.length, 4) - 1e-9))


def gather(data: DataSpec, batch: Batch) -> Inputs:
    """Groups and cleans the streams; times become shares of the window."""
    streams = {
        kind: {m.name: batch.inputs[m.name] for m in data.modalities if m.kind == kind}
        for kind in KINDS
    }
    limits = sorted({length_limit(data.modality(name)) for name in streams["series"]})
    series = {
        limit: [s for n, s in streams["series"].items() if length_limit(data.modality(n)) == limit]
        for limit in limits
    }
    return Inputs(
        series={limit: stack_series(some, hours=data.hours) for limit, some in series.items()},
        vectors={n: clean_vectors(s, hours=data.hours) for n, s in streams["vectors"].items()},
        tables=streams["table"],
        codes=streams["codes"] | streams["text"],
    )


class GridEncoder(nn.Module):
    """Timed modalities -> tokens at common query times: UTDE for series, mTAND for vectors.

    `authors` follows FuseMoE's code and paper (attention dropout, slow initial frequencies, raw
    vectors as values); `released_imputation` also its faulty imputation.
    """

    width: int
    num_heads: int
    num_queries: int
    embed_time: int
    utde: str = "batch"
    dropout: float = 0.0
    authors: bool = False
    released_imputation: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool) -> Array:
        """[B, Mt, Q, D]."""
        init = {} if self.authors else {"weight_init": frequency_init(self.num_queries)}
        embed = TimeEmbedding(self.embed_time, **init, name="time")
        query_QK = embed(query_times(self.num_queries))
        rate = self.dropout if self.authors else 0.0
        tokens = []
        for limit, series in inputs.series.items():
            utde = UTDE(
                self.width,
                self.num_heads,
                series.mask.shape[1],
                self.utde,
                rate,
                self.released_imputation,
                name=f"series_{limit}",
            )
            tokens.append(utde(series, query_QK, embed(series.times), train=train))
        for name, x in inputs.vectors.items():
            encoder = VectorsEncoder(
                self.width, self.num_heads, rate, project=not self.authors, name=name
            )
            tokens.append(encoder(x, query_QK, embed(x.times), train=train)[:, None])
        return jnp.concatenate(tokens, axis=1)


class StaticEncoder(nn.Module):
    """Tables, then codes, then text -> one token each."""

    data: DataSpec
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool) -> list[Array]:
        """[B, D] per untimed slot."""
        tokens = [
            TableEncoder(self.width, self.dropout, name=name)(stream, train=train)
            for name, stream in inputs.tables.items()
        ]
        for name, stream in inputs.codes.items():
            vocab = self.data.modality(name).vocab
            tokens.append(CodesEncoder(vocab, self.width, name=name)(stream))
        return tokens


class SummaryEncoder(nn.Module):
    """One token per modality from statistics over time, and those statistics themselves."""

    data: DataSpec
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool) -> tuple[Array, Array]:
        """Tokens [B, M, D] and, of series and tables, columns [B, N]."""
        tokens, columns = [], []
        for limit, series in inputs.series.items():
            statistics = jnp.clip(summary_statistics(series), -6.0, 6.0)
            x_BMN = rearrange(statistics, "b m f s -> b m (f s)")
            name = f"series_{limit}"
            encoder = SeriesSummary(self.width, x_BMN.shape[1], self.dropout, name=name)
            tokens.append(encoder(x_BMN, train=train))
            columns.append(rearrange(x_BMN, "b m n -> b (m n)"))
        for name, x in inputs.vectors.items():
            tokens.append(VectorsSummary(self.width, name=name)(x)[:, None])
        for stream in inputs.tables.values():
            seen = stream.observed & stream.present[:, None]
            columns += [jnp.where(seen, stream.values, 0.0), seen.astype(jnp.float32)]
        static = StaticEncoder(self.data, self.width, self.dropout, name="static")
        tokens += [x_BD[:, None] for x_BD in static(inputs, train=train)]
        rows = tokens[0].shape[0]
        return jnp.concatenate(tokens, 1), jnp.concatenate([jnp.zeros((rows, 0)), *columns], -1)
