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
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import gelu
from m4.nn.layers import MLP, Dropout, SelfAttention, StackedLayerNorm, masked_mean
from m4.nn.pretrained import wrapper
from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Stream

EPSILON = 1e-12  # of BERT's layer norms
HEAD = 64  # width of a head, where nothing else is said: true of all published sizes
UNUSED = r"(cls|classifier|qa_outputs|lm_head)\.|.*position_ids$"
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
        position_LD = self.param("position", normal, (s.positions, s.width))
        type_SD = self.param("type", normal, (s.types, s.width))
        word = nn.Embed(s.vocab, s.width, embedding_init=normal, name="word")
        x = word(token_BT) + position_LD[: token_BT.shape[1]] + type_SD[0]
        x = self._drop(StackedLayerNorm(epsilon=EPSILON, name="norm")(x), "drop", train)
        for i in range(s.depth):
            attend = SelfAttention(s.num_heads, dropout=self.dropout, name=f"attention_{i}")
            a = attend(x[:, None], mask_BT[:, None], train=train)[:, 0]
            x = x + self._drop(a, f"drop_{i}_0", train)
            x = StackedLayerNorm(epsilon=EPSILON, name=f"norm_{i}_0")(x)
            y = MLP(s.hidden, activation=gelu, name=f"mlp_{i}")(x, train=train)
            x = x + self._drop(y, f"drop_{i}_1", train)
            x = StackedLayerNorm(epsilon=EPSILON, name=f"norm_{i}_1")(x)
        if not s.pooler:
            return x, x[:, 0]
        return x, jnp.tanh(nn.Dense(s.width, name="pooler")(x[:, 0]))

    def _drop(self, x, name, train):
        return Dropout(self.dropout, deterministic=not train, name=name)(x)


@functools.lru_cache(maxsize=2)
def load(file: str, num_heads: int = 0) -> tuple[BertSizes, wrapper.Readers]:
    """Sizes, and for every parameter of `Bert` by path what reads it.

    Prefixes such as `bert.` and the old names gamma and beta of layer norms are understood; heads
    for pretraining are passed over. Raises ValueError with every tensor that is missing, surplus,
    of another shape or not finite, and OSError for a file that cannot be read.
    """
    tensors = {_plain(name): x for name, x in wrapper.read(file).items()}
    tensors = {name: x for name, x in tensors.items() if not re.match(UNUSED, name)}
    rank = {n: 1 if "LayerNorm" in n else 2 for n in _table(0)}
    lacks = [n for n in rank if n not in tensors or tensors[n].ndim != rank[n]]
    if lacks:
        raise ValueError(f"{file}: no BERT, it lacks {', '.join(lacks)}")
    sizes = _sizes(file, tensors, num_heads)
    wrapper.check(file, tensors, expected(sizes))
    names: dict[str, tuple[str, ...]] = {}
    for name, path in _table(sizes.depth, pooler=bool(sizes.pooler)).items():
        names[path] = (*names.get(path, ()), name)
    return sizes, wrapper.as_readers(names, tensors, _join)


def expected(sizes: BertSizes) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by its name in the file."""
    width, hidden = sizes.width, sizes.hidden
    known = {
        "embeddings.word_embeddings.weight": (sizes.vocab, width),
        "embeddings.position_embeddings.weight": (sizes.positions, width),
        "embeddings.token_type_embeddings.weight": (sizes.types, width),
    }

    def shape(name):
        if name in known:
            return known[name]
        matrix = name.endswith("weight") and "LayerNorm" not in name
        up = ".intermediate." in name
        down = bool(re.search(r"\d\.output\.dense", name))
        out = hidden if up else width
        return (out, hidden if down else width) if matrix else (out,)

    return {name: shape(name) for name in _table(sizes.depth, pooler=bool(sizes.pooler))}


def _plain(name: str) -> str:
    """Without a model's prefix, and with today's names."""
    name = re.sub(r"^.*?(?=(embeddings|encoder|pooler)\.)", "", name, count=1)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _table(depth: int, *, pooler: bool = False) -> dict[str, str]:
    """Name in the file -> path in `Bert`, in the order in which parts are put together."""
    table = {
        "embeddings.word_embeddings.weight": "word/embedding",
        "embeddings.position_embeddings.weight": "position",
        "embeddings.token_type_embeddings.weight": "type",
    }
    modules = {"embeddings.LayerNorm": "norm"}
    for i in range(depth):
        at = f"encoder.layer.{i}"
        modules |= {
            f"{at}.attention.self.{name}": f"attention_{i}/qkv"
            for name in ("query", "key", "value")
        }
        modules |= {
            f"{at}.attention.output.dense": f"attention_{i}/out",
            f"{at}.attention.output.LayerNorm": f"norm_{i}_0",
            f"{at}.intermediate.dense": f"mlp_{i}/up",
            f"{at}.output.dense": f"mlp_{i}/down",
            f"{at}.output.LayerNorm": f"norm_{i}_1",
        }
    if pooler:
        modules["pooler.dense"] = "pooler"
    for name, path in modules.items():
        table[f"{name}.weight"] = f"{path}/scale" if "LayerNorm" in name else f"{path}/kernel"
        table[f"{name}.bias"] = f"{path}/bias"
    return table


def _sizes(file, tensors, num_heads) -> BertSizes:
    vocab, width = tensors["embeddings.word_embeddings.weight"].shape
    layers = {m[1] for n in tensors if (m := re.match(r"encoder\.layer\.(\d+)\.", n))}
    up = tensors.get("encoder.layer.0.intermediate.dense.weight", np.zeros(4 * width))
    heads = num_heads or max(1, width // HEAD)
    if width % heads:
        raise ValueError(f"{file}: {heads} heads cannot split a width of {width}; set num_heads")
    return BertSizes(
        vocab=vocab,
        positions=len(tensors["embeddings.position_embeddings.weight"]),
        types=len(tensors["embeddings.token_type_embeddings.weight"]),
        width=width,
        hidden=(*up.shape, 0)[0],
        depth=len(layers),
        num_heads=heads,
        pooler=int("pooler.dense.weight" in tensors),
    )


def _join(path: str, parts: list[np.ndarray]) -> np.ndarray:
    """One m4 array: stacks lead with a 1, query, key and value are side by side."""
    if path.endswith("kernel"):
        parts = [x.T for x in parts]
    x = np.concatenate(parts, -1)
    stacked = path.rpartition("/")[0] not in ("", "word", "pooler")
    return x[None] if stacked else x


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
        sizes = {"positions": self.sizes.positions, "vocab": self.sizes.vocab}
        return {
            m.name: read(bert, streams[m.name], **sizes, pooling=self.pooling, train=train)
            for m in _texts(self.data)
        }

    def readers(self) -> wrapper.Readers:
        """Of the BERT."""
        return load(self.file, self.sizes.num_heads)[1]


def read(
    model: Callable[..., tuple[Array, Array]],
    stream: Stream,
    *,
    positions: int,
    vocab: int,
    pooling: str,
    train: bool,
) -> Stream:
    """A text as vectors, in chunks of up to `positions` tokens; `model` is a `Bert`'s call."""
    mask_BT = stream.mask & stream.present[:, None]
    rows, total = mask_BT.shape
    length = min(total, positions)
    pad = -total % length

    def chunks(x_BT):
        return rearrange(jnp.pad(x_BT, ((0, 0), (0, pad))), "b (c t) -> (b c) t", t=length)

    token = jnp.where(mask_BT, jnp.clip(stream.values, 0, vocab - 1), 0).astype(jnp.int32)
    mask = chunks(mask_BT)
    x, pooled = model(chunks(token), mask, train=train)
    if pooling == "tokens":
        x_BKD = rearrange(x, "(b c) t d -> b (c t) d", b=rows)[:, :total]
        mask_BK = mask_BT
    else:
        reduced = {"first": lambda: x[:, 0], "pooler": lambda: pooled}
        reduced["mean"] = lambda: masked_mean(x, mask, dim=1)
        x_BKD = rearrange(reduced[pooling](), "(b c) d -> b c d", b=rows)
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
    method = make(as_vectors(data, sizes, pooling))
    return WithText(method, data, file, sizes, tuning, pooling, dropout)


def as_vectors(data: DataSpec, sizes: BertSizes, pooling: Pooling) -> DataSpec:
    """The schema with text modalities as vectors."""

    def shape(m: ModalitySpec) -> tuple[int, int]:
        chunks = math.ceil(m.length / sizes.positions)
        return m.length if pooling == "tokens" else chunks, sizes.width

    return wrapper.as_vectors(data, "text", shape)


def _texts(data: DataSpec) -> list[ModalitySpec]:
    return [m for m in data.modalities if m.kind == "text"]
