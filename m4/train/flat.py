"""A state as a few long vectors: its update is then a few kernels instead of a few hundred.

Every tree of the parameters (themselves, moments, average) becomes a vector of what weight decay
applies to and one of the rest, for each dtype. That is for one CPU device, where kernels are what
a step takes longest to compile; on a mesh leaves lie differently. Checkpoints, evaluation and
messages have trees: a `Layout` goes back and forth, on the host.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m4.train import optim
from m4.types import Array, Batch, Method, Outputs

Vectors = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where every parameter lies in the vectors."""

    structure: Any  # of the tree of parameters
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]  # the vector of every leaf

    @classmethod
    def of(cls, params: Any) -> "Layout":
        """The layout of parameters, or of their shapes."""
        leaves, structure = jax.tree.flatten(params)
        kinds = ["decayed" if x else "spared" for x in jax.tree.leaves(optim.decayed(params))]
        groups = tuple(f"{kind}_{x.dtype}" for kind, x in zip(kinds, leaves, strict=True))
        return cls(structure, tuple(x.shape for x in leaves), groups)

    def vectors(self, params: Any, *, join: Callable = jnp.concatenate) -> Vectors:
        """Parameters as vectors."""
        leaves = jax.tree.leaves(params)
        return {
            name: join(
                [x.reshape(-1) for x, own in zip(leaves, self.groups, strict=True) if own == name]
            )
            for name in sorted({*self.groups})
        }

    def tree(self, vectors: Vectors, *, split: Callable = jax.lax.split) -> Any:
        """Parameters again. The gradient of `jax.lax.split` is one concatenation."""
        parts = {}
        for name, vector in vectors.items():
            shapes = [s for s, own in zip(self.shapes, self.groups, strict=True) if own == name]
            pieces = split(vector, [int(np.prod(shape)) for shape in shapes])
            parts[name] = iter([x.reshape(s) for x, s in zip(pieces, shapes, strict=True)])
        return jax.tree.unflatten(self.structure, [next(parts[name]) for name in self.groups])

    def is_packed(self, state: Any) -> bool:
        """Whether a state has vectors."""
        return jax.tree.structure(state.params) != self.structure

    def packed(self, state: Any, *, join: Callable = jnp.concatenate) -> Any:
        """A state with every tree of the parameters as vectors."""

        def whole(x):
            return jax.tree.structure(x) == self.structure

        return jax.tree.map(
            lambda x: self.vectors(x, join=join) if whole(x) else x, state, is_leaf=whole
        )

    def decayed(self, params: Any) -> Any:
        """Of every vector or, in a tree, leaf, whether weight decay applies to it."""
        if jax.tree.structure(params) == self.structure:
            return optim.decayed(params)
        return {name: name.startswith("decayed") for name in params}

    def unpacked(self, state: Any) -> Any:
        """A packed state with trees, of copies on the host: the step donates the vectors."""
        names = {*self.groups}

        def flat(x):
            return isinstance(x, dict) and x.keys() == names

        return jax.tree.map(
            lambda x: self.tree(x, split=_cut) if flat(x) else x,
            jax.tree.map(np.array, state),
            is_leaf=flat,
        )


@dataclasses.dataclass(frozen=True)
class FlatMethod:
    """A method whose parameters are vectors; it takes trees, too."""

    method: Method
    layout: Layout

    def apply(self, variables: Any, batch: Batch, **kwargs: Any) -> Outputs:
        """As the method's."""
        params = variables["params"]
        if jax.tree.structure(params) != self.layout.structure:
            params = self.layout.tree(params)
        return self.method.apply({"params": params}, batch, **kwargs)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> Any:
        """As the method's."""
        return self.method.loss(out, batch, step)


def _cut(vector: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(vector, np.cumsum(sizes)[:-1])
