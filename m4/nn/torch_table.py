"""How a release names and stores what m4 keeps in a parameter array: one table, both directions.

An `Entry` is one m4 array and the release's tensors that it is made of. `join` and `split` move
numbers and compute nothing, so a round trip is exact. The shapes that the release must have
follow from `split`: a table holds no shapes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Codec(NamedTuple):
    """A rearrangement of one array and its inverse."""

    forth: Callable[[Array], Array]
    back: Callable[[Array], Array]


def chain(*codecs: Codec) -> Codec:
    """The codecs one after the other."""
    return Codec(
        lambda x: functools.reduce(lambda y, codec: codec.forth(y), codecs, x),
        lambda x: functools.reduce(lambda y, codec: codec.back(y), reversed(codecs), x),
    )


SAME = chain()
SWAP = Codec(lambda x: x.swapaxes(-1, -2), lambda x: x.swapaxes(-1, -2))  # (out, in) -> (in, out)
LEAD = Codec(lambda x: x[None], lambda x: x[0])  # one stack, gate or row in front
LAST = Codec(lambda x: x[..., 0], lambda x: x[..., None])  # without a last dimension of 1


def take(order: Sequence[int], dim: int = 0) -> Codec:
    """Place i holds what was in place `order[i]`."""
    inverse = np.argsort(order)
    return Codec(lambda x: np.take(x, order, dim), lambda x: np.take(x, inverse, dim))


def blocks(order: Sequence[int], dim: int = 0) -> Codec:
    """`take` of equal consecutive blocks of a dimension: one block per modality."""

    def move(x, order):
        return np.concatenate(np.take(np.split(x, len(order), dim), order, 0), dim)

    inverse = np.argsort(order)
    return Codec(lambda x: move(x, order), lambda x: move(x, inverse))


def pick(rows: Sequence[int], total: int) -> Codec:
    """The `rows` of `total` that m4 has; the others, which nothing reads, go back as zeros."""

    def back(x):
        wide = np.zeros((total, *x.shape[1:]), x.dtype)
        wide[list(rows)] = x
        return wide

    return Codec(lambda x: x[list(rows)], back)


def shape(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Codec:
    """`np.reshape`."""
    return Codec(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


@dataclasses.dataclass(frozen=True)
class Entry:
    """The m4 array at `path` ('layer_0/moe/w1') and the release's tensors `names`."""

    path: str
    names: tuple[str, ...]
    join: Callable[[list[Array]], Array]
    split: Callable[[Array], list[Array]]

    def then(self, *codecs: Codec) -> "Entry":
        """The entry with the joined array rearranged further."""
        codec = chain(*codecs)
        return dataclasses.replace(
            self,
            join=lambda xs: codec.forth(self.join(xs)),
            split=lambda x: self.split(codec.back(x)),
        )


def one(path: str, name: str, *codecs: Codec) -> Entry:
    """One tensor, rearranged."""
    return Entry(path, (name,), lambda xs: xs[0], lambda x: [x]).then(*codecs)


def stack(path: str, names: Sequence[str], *codecs: Codec) -> Entry:
    """Tensors of one shape, each rearranged, on a new first dimension."""
    codec = chain(*codecs)
    return Entry(
        path,
        tuple(names),
        lambda xs: np.stack([codec.forth(x) for x in xs]),
        lambda x: [codec.back(row) for row in x],
    )


def concat(path: str, names: Sequence[str], sizes: Sequence[int], *codecs: Codec) -> Entry:
    """Tensors, each rearranged, behind each other; `sizes` are their rows then."""
    codec, ends = chain(*codecs), np.cumsum(sizes)[:-1]
    return Entry(
        path,
        tuple(names),
        lambda xs: np.concatenate([codec.forth(x) for x in xs]),
        lambda x: [codec.back(part) for part in np.split(x, ends)],
    )


def linear(path: str, name: str, move: Codec = SWAP) -> list[Entry]:
    """`torch.nn.Linear` -> `nn.Dense`, or another module whose weight `move` turns."""
    return [one(f"{path}/kernel", f"{name}.weight", move), one(f"{path}/bias", f"{name}.bias")]


def conv(path: str, name: str) -> list[Entry]:
    """`torch.nn.Conv2d` or `Conv3d` -> `nn.Conv`: (out, in, ...) -> (..., in, out)."""
    first, last = (0, 1), (-1, -2)
    return linear(
        path,
        name,
        Codec(lambda x: np.moveaxis(x, first, last), lambda x: np.moveaxis(x, last, first)),
    )


def linears(
    path: str, names: Sequence[str], leaf: str = "kernel", move: Codec = SWAP
) -> list[Entry]:
    """One `torch.nn.Linear` per stack -> `StackedDense`."""
    return [
        stack(f"{path}/{leaf}", [f"{n}.weight" for n in names], move),
        stack(f"{path}/bias", [f"{n}.bias" for n in names]),
    ]


def norms(path: str, names: Sequence[str]) -> list[Entry]:
    """One `torch.nn.LayerNorm` per stack -> `StackedLayerNorm`."""
    return linears(path, names, "scale", SAME)


def packed(path: str, names: Sequence[str]) -> list[Entry]:
    """Attention with packed q, k and v, one module per stack -> `SelfAttention`."""
    return [
        stack(f"{path}/qkv/kernel", [f"{n}.in_proj_weight" for n in names], SWAP),
        stack(f"{path}/qkv/bias", [f"{n}.in_proj_bias" for n in names]),
        *linears(f"{path}/out", [f"{n}.out_proj" for n in names]),
    ]


@dataclasses.dataclass(frozen=True)
class Layout:
    """All tensors of a release.

    `copies` are stored twice (name -> the tensor that it repeats); `constants` are buffers with
    one possible value; `ignored` (pattern as in `fnmatch` -> reason) is never read by the
    model, and not written. `sections` are prefixes of names that are dictionaries in the file;
    `notes` say what goes where, as far as names or the file tell it.
    """

    entries: Sequence[Entry]
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sections: Sequence[str] = ()
    notes: Sequence[str] = ()
