"""Equal layers, one after the other: each written into the program, or one that a loop repeats.

Sixteen layers as sixteen copies take eight times as long to compile as two. As a loop they are one
layer, the same program for every depth; its parameters are stacked, with a leading dimension of
layers, and its random numbers are others than those of the copies.

Letters: L layers.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from m4.maths import LAYERS

Layer = Callable[[int, Any], tuple[Any, Any]]  # (its number, carry) -> (carry, by-product)


def repeat(
    layer: Layer, depth: int, carry: Any, *, scan: bool, prefix: str = ""
) -> tuple[Any, list[Any]]:
    """The carry after `depth` layers, and what each said besides.

    To be called inside a compact method. `layer` makes its submodules, with its number in their
    names; it must not do so by methods of a module, whose submodules they would become. With `scan`
    it is traced once, as number 0, and they are found under `<prefix>layers`.
    """
    if not scan or not depth:
        said = []
        for i in range(depth):
            carry, one = layer(i, carry)
            said.append(one)
        return carry, said
    loop = nn.scan(
        _Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True, "gate": True},
        length=depth,
        metadata_params={nn.PARTITION_NAME: None},  # no axis of a mesh splits layers
    )
    carry, said_L = loop(layer, name=prefix + LAYERS)(carry, None)
    return carry, [jax.tree.map(lambda x, i=i: x[i], said_L) for i in range(depth)]


class _Layer(nn.Module):
    """What the loop repeats."""

    layer: Layer

    @nn.compact
    def __call__(self, carry: Any, _: None) -> tuple[Any, Any]:
        return self.layer(0, carry)
