"""Both directions of a `Layout`, with every problem reported at once."""

import collections
import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np

from m4.errors import ConfigError, DataError
from m4.nn.torch_table import Layout

Tensors = Mapping[str, np.ndarray]


def check_paths(layout: Layout, shapes: Mapping[str, Any]) -> None:
    """Raises ConfigError if the method as configured has other arrays than the release."""
    paths = {entry.path for entry in layout.entries}
    lines = [f"parameter {path}: the release has nothing like it" for path in shapes.keys() - paths]
    lines += [
        f"parameter {path}: the release has it, the method as configured does not"
        for path in paths - shapes.keys()
    ]
    if lines:
        raise ConfigError(*sorted(lines))


def expected(layout: Layout, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Name of every tensor that the release must have -> dtype and shape in words."""
    words = {}
    for entry in layout.entries:
        like = shapes[entry.path]
        blank = np.broadcast_to(np.zeros((), like.dtype), like.shape)
        words |= {n: _words(x) for n, x in zip(entry.names, entry.split(blank), strict=True)}
    words |= {name: words[source] for name, source in layout.copies.items()}
    return words | {name: _words(x) for name, x in layout.constants.items()}


def without_prefix(layout: Layout, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Without what all names begin with, where none is one of the release's, and a line of it."""
    known = {name for entry in layout.entries for name in entry.names} | {*layout.copies}
    found, prefix = dict(tensors), ""
    while not any(name in known or reason(layout, name) is not None for name in found):
        firsts = {name.partition(".")[0] for name in found if "." in name}
        if len(firsts) != 1 or not all("." in name for name in found):
            return tensors, []
        prefix += f"{firsts.pop()}."
        found = {name.partition(".")[2]: x for name, x in found.items()}
    return found, [f"prefix {prefix} was taken off"] if prefix else []


def to_m4(
    layout: Layout, tensors: Tensors, shapes: Mapping[str, Any], source: str
) -> dict[str, np.ndarray]:
    """Path -> array in m4's layout.

    Raises DataError with a line for every tensor that is missing, surplus, of another shape or
    dtype, not finite, or differs from what it has to repeat.
    """
    check_paths(layout, shapes)
    wanted = expected(layout, shapes)
    lines = [
        f"{source}: {name} is missing, expected {what}"
        for name, what in wanted.items()
        if name not in tensors
    ]
    lines += [
        f"{source}: {name} {_words(x)} is surplus"
        for name, x in tensors.items()
        if name not in wanted and reason(layout, name) is None
    ]
    for name in wanted.keys() & tensors.keys():
        x = tensors[name]
        if _words(x) != wanted[name]:
            lines.append(f"{source}: {name} is {_words(x)}, expected {wanted[name]}")
        elif not np.isfinite(x).all():
            lines.append(f"{source}: {name} holds numbers that are not finite")
        elif name in layout.constants and not np.array_equal(x, layout.constants[name]):
            lines.append(f"{source}: {name} must be {layout.constants[name].tolist()}")
        elif name in layout.copies:
            twin = layout.copies[name]
            if twin in tensors and not np.array_equal(x, tensors[twin]):
                lines.append(f"{source}: {name} must be equal to {twin}")
    if lines:
        raise DataError(*sorted(lines))
    return {e.path: e.join([tensors[name] for name in e.names]) for e in layout.entries}


def to_torch(layout: Layout, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse: name -> tensor, with copies and constants, without what is ignored."""
    check_paths(layout, params)
    tensors = {}
    for entry in layout.entries:
        tensors |= zip(entry.names, entry.split(params[entry.path]), strict=True)
    tensors |= {name: tensors[source] for name, source in layout.copies.items()}
    tensors |= layout.constants
    return {name: np.array(x, order="C") for name, x in tensors.items()}


def reason(layout: Layout, name: str) -> str | None:
    """Why a tensor is ignored, None if it is not."""
    for pattern, why in layout.ignored.items():
        if fnmatch.fnmatchcase(name, pattern):
            return why
    return None


def dropped(layout: Layout, names) -> dict[str, int]:
    """Reason -> number of tensors ignored for it."""
    return dict(collections.Counter(why for n in names if (why := reason(layout, n)) is not None))


def holes(layout: Layout, shapes: Mapping[str, Any]) -> list[str]:
    """Tensors of which m4 reads a part: the rest is not taken, and zeros in an export."""
    found = set()
    for entry in layout.entries:
        ones = np.broadcast_to(np.float32(1), shapes[entry.path].shape)
        found |= {n for n, x in zip(entry.names, entry.split(ones), strict=True) if not np.all(x)}
    return sorted(found)


def _words(x: np.ndarray) -> str:
    return f"{x.dtype}{list(x.shape)}"
