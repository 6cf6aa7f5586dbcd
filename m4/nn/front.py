"""What stands in front of a method and reads some modalities for it: the method sees vectors.

Encoders with weights from a file are in `m4.nn.pretrained`, ones that are trained with the method
in `m4.nn.encoders.convolution`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn

from m4.specs import DataSpec, ModalitySpec
from m4.types import Array, Batch, Outputs, Stream


class Front(nn.Module):
    """`method`, made for `as_vectors(data, ...)`, behind encoders of some kinds of modalities."""

    method: nn.Module
    data: DataSpec

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool, **inputs: Any) -> Outputs:
        """As the method's."""
        found = self.encode(batch.inputs, train=train)
        batch = batch.replace(inputs={**batch.inputs, **found})
        return self.method(batch, train=train, **inputs)

    def encode(self, streams: Mapping[str, Stream], *, train: bool) -> dict[str, Stream]:
        """The modalities that it reads, as vectors."""
        raise NotImplementedError

    def loss(self, out: Outputs, batch: Batch, step: Array):
        """As the method's, which sees who has what, but not the encoder's inputs."""
        return self.method.loss(out, batch, step)

    def pretrained(self, params: dict[str, Any]) -> dict[str, Any]:
        """`params` with what the method has weights for."""
        if hasattr(self.method, "pretrained"):
            params = params | {"method": self.method.pretrained(params["method"])}
        return params


def bare(method: Any) -> Any:
    """The method itself, without what reads texts, images or signals for it."""
    while isinstance(method, Front):
        method = method.method
    return method


def as_vectors(
    data: DataSpec, kinds: Collection[str], shape: Callable[[ModalitySpec], tuple[int, int]]
) -> DataSpec:
    """The schema with modalities of some kinds as vectors of `shape(modality)`."""
    return dataclasses.replace(
        data,
        modalities=tuple(
            ModalitySpec(m.name, "vectors", shape(m)) if m.kind in kinds else m
            for m in data.modalities
        ),
    )
