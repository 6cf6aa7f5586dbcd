"""Encoders with weights from a safetensors file, in front of any method.

The method then has vectors in the place of texts (`m4.nn.pretrained.bert`) or images
(`m4.nn.pretrained.images`).
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from m4.nn.front import Front
from m4.nn.pretrained import safetensors
from m4.nn.vit_names import Modules
from m4.types import Stream

HEAD = 64  # width of a head, where nothing else is said: true of all published sizes
Tuning = Literal["frozen", "tuned"]
Readers = Mapping[str, Callable[[], np.ndarray]]
# Path of a parameter -> its names in the file, and name -> shape there.
Tables = tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]


class Reader(Front):
    """`method`, made for `as_vectors(data, ...)`, behind an encoder with weights from a file.

    With tuning='frozen' the encoder has no gradient; its parameters are named so that weight
    decay spares them, too. A subclass says how its encoder makes vectors.
    """

    file: str
    sizes: Any  # what the weights say about the architecture
    tuning: Tuning
    pooling: str
    dropout: float

    kind: ClassVar[str]  # of the modalities that it reads

    def encode(self, streams: Mapping[str, Stream], *, train: bool) -> dict[str, Stream]:
        """As `vectors`, without a gradient if the encoder is frozen."""
        found = self.vectors(streams, train=train)
        if self.tuning == "frozen":
            stop = jax.lax.stop_gradient
            found = {name: x.replace(values=stop(x.values)) for name, x in found.items()}
        return found

    def vectors(self, streams: Mapping[str, Stream], *, train: bool) -> dict[str, Stream]:
        """What the encoder, a submodule named `part`, makes of its modalities."""
        raise NotImplementedError

    def pretrained(self, params: dict[str, Any]) -> dict[str, Any]:
        """`params` with the file's weights; they are read by the host, not part of a program."""
        read = self.readers()

        def value(path, x):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return jax.pure_callback(read[name], jax.ShapeDtypeStruct(x.shape, jnp.float32))

        params = params | {self.part: jax.tree_util.tree_map_with_path(value, params[self.part])}
        return super().pretrained(params)

    def readers(self) -> Readers:
        """What reads every parameter of the encoder, by path."""
        raise NotImplementedError

    @property
    def part(self) -> str:
        """The encoder's name among the parameters."""
        return f"frozen_{self.kind}" if self.tuning == "frozen" else self.kind


def read(file: str) -> dict[str, np.ndarray]:
    """Tensors by name. Raises ValueError for what is no safetensors file, OSError."""
    if not file.endswith(".safetensors"):
        raise ValueError(
            f"{file}: must be a .safetensors file; convert PyTorch files once, outside"
        )
    return safetensors.read(file)


def without(tensors: Mapping[str, np.ndarray], anchor: str, unused: str) -> dict[str, np.ndarray]:
    """Without the prefix that the name ending in `anchor` has, and without `unused` (a pattern)."""
    prefix = min((n for n in tensors if n.endswith(anchor)), key=len).removesuffix(anchor)
    plain = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return {name: x for name, x in plain.items() if not re.match(unused, name)}


def check(
    file: str, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError with all that are missing, surplus, misshapen, empty or not finite."""
    lines = [f"{name} is missing" for name in sorted(shapes.keys() - tensors.keys())]
    lines += [f"{name} is surplus" for name in sorted(tensors.keys() - shapes.keys())]
    for name in shapes:
        if name not in tensors:
            continue
        x, shape = tensors[name], shapes[name]
        if x.shape != shape or x.dtype.kind != "f":
            lines.append(f"{name} is {x.dtype}{list(x.shape)}, expected {list(shape)}")
        elif not x.size:
            lines.append(f"{name} is empty")
        elif not np.isfinite(x).all():
            lines.append(f"{name} has numbers that are not finite")
    if lines:
        raise ValueError(f"{file}: " + "; ".join(lines))


def tables(modules: Modules, arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> Tables:
    """Of modules with weight and bias, and of arrays by themselves."""
    names: dict[str, tuple[str, ...]] = {path: (name,) for path, (name, _) in arrays.items()}
    shapes = dict(arrays.values())
    for path, (parts, shape) in modules.items():
        leaf = "scale" if len(shape) == 1 else "kernel"
        for ours, theirs, size in ((leaf, "weight", shape), ("bias", "bias", shape[:1])):
            names[f"{path}/{ours}"] = tuple(f"{part}.{theirs}" for part in parts)
            shapes |= dict.fromkeys(names[f"{path}/{ours}"], size)
    return names, shapes


def join(path: str, parts: list[np.ndarray]) -> np.ndarray:
    """What lies side by side; kernels are (in, out) here and (out, in) in the file."""
    return np.concatenate([x.T if path.endswith("kernel") else x for x in parts], -1)


def sizes_of(
    file: str, tensors: Mapping[str, np.ndarray], block: str, up: str, width: int, num_heads: int
) -> tuple[int, int, int]:
    """Number of blocks, rows of the tensor `up` of the first one, and heads, HEAD wide if 0.

    Raises ValueError for heads that do not split the width.
    """
    heads = num_heads or max(1, width // HEAD)
    if width % heads:
        raise ValueError(f"{file}: {heads} heads cannot split a width of {width}; set num_heads")
    blocks = {m[1] for n in tensors if (m := re.match(rf"{re.escape(block)}\.(\d+)\.", n))}
    first = tensors.get(f"{block}.0.{up}.weight", np.zeros(4 * width))
    return len(blocks), (*first.shape, 0)[0], heads


def as_readers(
    names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, np.ndarray],
    join: Callable[[str, list[np.ndarray]], np.ndarray],
) -> Readers:
    """By path, what makes a parameter of the tensors that are `names` in the file."""

    def make(path, parts):
        found = join(path, [np.asarray(tensors[name], np.float32) for name in parts])
        return np.ascontiguousarray(found)

    return {path: functools.partial(make, path, parts) for path, parts in names.items()}
