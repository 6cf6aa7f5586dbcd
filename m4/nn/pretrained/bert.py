"""BERT (Devlin et al. 2019) with weights from a safetensors file, as a reader of text modalities.

BioBERT, ClinicalBERT and PubMedBERT share the architecture; Longformer does not (its attention is
windowed), so longer texts are read in chunks of as many tokens as the model has positions.
`WithText` puts a BERT in front of any method, which then has vectors instead of text.

Letters: B rows, T tokens, C chunks, K vectors, D width.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import gelu
from m4.nn.front import as_vectors
from m4.nn.layers import MLP, Dropout, SelfAttention, StackedLayerNorm, masked_mean
from m4.nn.pretrained import wrapper
from m4.nn.vit_names import Modules
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Stream

EPSILON = 1e-12  # of BERT's layer norms
UNUSED = r"(cls|classifier|qa_outputs|lm_head)\.|.*position_ids$"
EMBEDDINGS = {
    "word/embedding": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "type": "embeddings.token_type_embeddings.weight",
}
FIRST_NORM = ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias")
normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class BertSizes:
    """What the weights say about the architecture; `num_heads` they cannot tell."""

    vocab: int
    positions: int
    types: int
    width: int
    hidden: int
    depth: int
    num_heads: int
    pooler: int  # 1 if the file has one


class Bert(nn.Module):
    """Post-norm encoder; the weights' names in the file are in `load`."""

    sizes: BertSizes
    dropout: float = 0.0

    @nn.compact
    def __call__(self, token_BT: Array, mask_BT: Array, *, train: bool) -> tuple[Array, Array]:
        """i32[B, T], bool[B, T] -> last hidden states [B, T, D] and the pooled ones [B, D].

        Tokens outside the mask are never read. Without a pooler the second is the first token's
        state. All tokens are of the first type.
        """
        s = self.sizes
        drop = lambda name: Dropout(self.dropout, deterministic=not train, name=name)  # noqa: E731
        position_LD = self.param("position", normal, (s.positions, s.width))
        type_SD = self.param("type", normal, (s.types, s.width))
        word = nn.Embed(s.vocab, s.width, embedding_init=normal, name="word")
        x = word(token_BT) + position_LD[: token_BT.shape[1]] + type_SD[0]
        x = drop("drop")(StackedLayerNorm(epsilon=EPSILON, name="norm")(x))
        for i in range(s.depth):
            attend = SelfAttention(s.num_heads, dropout=self.dropout, name=f"attention_{i}")
            a = attend(x[:, None], mask_BT[:, None], train=train)[:, 0]
            x = x + drop(f"drop_{i}_0")(a)
            x = StackedLayerNorm(epsilon=EPSILON, name=f"norm_{i}_0")(x)
            y = MLP(s.hidden, activation=gelu, name=f"mlp_{i}")(x, train=train)
            x = x + drop(f"drop_{i}_1")(y)
            x = StackedLayerNorm(epsilon=EPSILON, name=f"norm_{i}_1")(x)
        if not s.pooler:
            return x, x[:, 0]
        return x, jnp.tanh(nn.Dense(s.width, name="pooler")(x[:, 0]))


@functools.lru_cache(maxsize=2)
def load(file: str, num_heads: int = 0) -> tuple[BertSizes, wrapper.Readers]:
    """Sizes, and for every parameter of `Bert` by path what reads it.

    Prefixes such as `bert.` and the old names gamma and beta of layer norms are understood; heads
    for pretraining are passed over. Raises ValueError with every tensor that is missing, surplus,
    there twice, of another shape or not finite, and OSError for a file that cannot be read.
    """
    found = [(_plain(name), x) for name, x in wrapper.read(file).items()]
    found = [(name, x) for name, x in found if not re.match(UNUSED, name)]
    tensors = dict(found)
    if len(tensors) < len(found):
        twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
        raise ValueError(f"{file}: holds {', '.join(twice)} under two names each")
    rank = dict.fromkeys(EMBEDDINGS.values(), 2) | dict.fromkeys(FIRST_NORM, 1)
    lacks = [n for n in rank if n not in tensors or tensors[n].ndim != rank[n]]
    if lacks:
        raise ValueError(f"{file}: no BERT, it lacks {', '.join(lacks)}")
    sizes = _sizes(file, tensors, num_heads)
    names, shapes = tables(sizes)
    wrapper.check(file, tensors, shapes)
    return sizes, wrapper.as_readers(names, tensors, _join)


def _plain(name: str) -> str:
    """Without a model's prefix, and with today's names."""
    name = re.sub(r"^.*?(?=(embeddings|encoder|pooler)\.)", "", name, count=1)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def tables(s: BertSizes) -> wrapper.Tables:
    """Names in the file and shapes there."""
    square, norm = (s.width, s.width), (s.width,)
    found: Modules = {"norm": (("embeddings.LayerNorm",), norm)}
    for i in range(s.depth):
        at = f"encoder.layer.{i}"
        qkv = tuple(f"{at}.attention.self.{name}" for name in ("query", "key", "value"))
        found |= {
            f"attention_{i}/qkv": (qkv, square),
            f"attention_{i}/out": ((f"{at}.attention.output.dense",), square),
            f"norm_{i}_0": ((f"{at}.attention.output.LayerNorm",), norm),
            f"mlp_{i}/up": ((f"{at}.intermediate.dense",), (s.hidden, s.width)),
            f"mlp_{i}/down": ((f"{at}.output.dense",), (s.width, s.hidden)),
            f"norm_{i}_1": ((f"{at}.output.LayerNorm",), norm),
        }
    if s.pooler:
        found["pooler"] = (("pooler.dense",), square)
    rows = {"word/embedding": s.vocab, "position": s.positions, "type": s.types}
    arrays = {path: (EMBEDDINGS[path], (n, s.width)) for path, n in rows.items()}
    return wrapper.tables(found, arrays)


def _sizes(file, tensors, num_heads) -> BertSizes:
    vocab, positions, types = (len(tensors[name]) for name in EMBEDDINGS.values())
    width = tensors[EMBEDDINGS["word/embedding"]].shape[1]
    depth, hidden, heads = wrapper.sizes_of(
        file, tensors, "encoder.layer", "intermediate.dense", width, num_heads
    )
    pooler = int("pooler.dense.weight" in tensors)
    return BertSizes(vocab, positions, types, width, hidden, depth, heads, pooler)


def _join(path: str, parts: list[np.ndarray]) -> np.ndarray:
    """One m4 array; all but embeddings and pooler are stacks."""
    x = wrapper.join(path, parts)
    return x if path in EMBEDDINGS or path.startswith("pooler") else x[None]


Pooling = Literal["first", "mean", "pooler", "tokens"]


class WithText(wrapper.Reader):
    """A BERT turns every text modality of `data` into vectors.

    One vector per chunk ('first' token, 'mean' over tokens, or the 'pooler's), or one per token;
    their times are 0.
    """

    kind = "text"

    def vectors(self, streams: Mapping[str, Stream], *, train: bool) -> dict[str, Stream]:
        """By name of the modality."""
        bert = Bert(self.sizes, self.dropout, name=self.part)
        return {m.name: self._read(bert, streams[m.name], train) for m in _texts(self.data)}

    def readers(self) -> wrapper.Readers:
        """Of the BERT."""
        return load(self.file, self.sizes.num_heads)[1]

    def _read(self, bert: Bert, stream: Stream, train: bool) -> Stream:
        """A text in chunks of up to as many tokens as there are positions."""
        mask_BT = stream.mask & stream.present[:, None]
        rows, total = mask_BT.shape
        length = min(total, self.sizes.positions)
        pad = -total % length

        def chunks(x_BT):
            return rearrange(jnp.pad(x_BT, ((0, 0), (0, pad))), "b (c t) -> (b c) t", t=length)

        known = jnp.clip(stream.values, 0, self.sizes.vocab - 1)
        token, mask = chunks(jnp.where(mask_BT, known, 0).astype(jnp.int32)), chunks(mask_BT)
        x, pooled = bert(token, mask, train=train)
        if self.pooling == "tokens":
            x_BKD = rearrange(x, "(b c) t d -> b (c t) d", b=rows)[:, :total]
            mask_BK = mask_BT
        else:
            if self.pooling == "mean":
                pooled = masked_mean(x, mask, dim=1)
            x_BD = x[:, 0] if self.pooling == "first" else pooled
            x_BKD = rearrange(x_BD, "(b c) d -> b c d", b=rows)
            mask_BK = rearrange(mask.any(-1), "(b c) -> b c", b=rows)
        return Stream(x_BKD, mask_BK, stream.present, jnp.zeros(mask_BK.shape))


def with_text(
    make: Callable[[DataSpec], nn.Module],
    data: DataSpec,
    *,
    file: str,
    tuning: wrapper.Tuning = "frozen",
    pooling: Pooling = "first",
    num_heads: int = 0,
    dropout: float = 0.0,
) -> WithText:
    """The method that `make` makes for a schema, with a BERT in front of it.

    Raises ValueError for a schema without text, with ids beyond the file's vocabulary, or for a
    file that is no BERT; OSError for one that cannot be read.
    """
    if tuning not in get_args(wrapper.Tuning) or pooling not in get_args(Pooling):
        raise ValueError(f"tuning={tuning!r}, pooling={pooling!r}")
    sizes, _ = load(file, num_heads)
    if pooling == "pooler" and not sizes.pooler:
        raise ValueError(f"{file}: has no pooler; choose pooling 'first', 'mean' or 'tokens'")
    if not _texts(data):
        raise ValueError(f"no modality is text: {', '.join(data.modality_names)}")
    for m in _texts(data):
        if (m.vocab or 0) > sizes.vocab:
            raise ValueError(f"modality {m.name}: vocab={m.vocab}, but {file} has {sizes.vocab}")

    def shape(m: ModalitySpec) -> tuple[int, int]:
        chunks = math.ceil(m.length / sizes.positions)
        return m.length if pooling == "tokens" else chunks, sizes.width

    method = make(as_vectors(data, ("text",), shape))
    return WithText(method, data, file, sizes, tuning, pooling, dropout)


def _texts(data: DataSpec) -> list[ModalitySpec]:
    return [m for m in data.modalities if m.kind == "text"]
