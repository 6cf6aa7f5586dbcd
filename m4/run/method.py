"""A method from its section of a configuration, behind the encoders that the files bring.

It is made, and tried on the schema alone, before data are built: what it refuses comes at once.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
from flax.core import FrozenDict

from m4.config import code
from m4.data.batch import empty
from m4.errors import ConfigError
from m4.moe.engine.dispatch import Target
from m4.moe.options import MoEOptions
from m4.nn.encoders import convolution
from m4.nn.front import Front
from m4.nn.pretrained import bert, images
from m4.specs import DataSpec
from m4.types import Method


def make_method(
    config: Mapping[str, Any],
    spec: DataSpec,
    *,
    text: Mapping[str, Any] = FrozenDict(),
    image: Mapping[str, Any] = FrozenDict(),
    conv: Mapping[str, Any] = FrozenDict(),
    target: Target | None = None,
) -> Method:
    """The method that `config['name']` and `['fidelity']` name, the other entries as its fields.

    An entry whose field is itself a dataclass replaces what it names of the field's default.

    Its layers are compiled for `target`. With `text['file']` a BERT reads the text modalities for
    it, with `image['file']` a ViT or a ResNet the images; with `conv['width']` convolutions
    trained with it read what images and signals are left.
    """
    given = {k: FrozenDict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    name = given.pop("name")
    fidelity = "m4" if ":" in name else given.pop("fidelity", "m4")  # outside, a field like others
    cls = code.method_class(name, fidelity)
    fields: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(cls)}
    sections: dict[str, Any] = {n: d for n, d in fields.items() if dataclasses.is_dataclass(d)}

    def make(data: DataSpec) -> Method:
        try:
            parts: dict[str, Any] = {}
            for field, default in sections.items():
                parts[field] = dataclasses.replace(default, **given.get(field, {}))
                if isinstance(default, MoEOptions):
                    parts[field] = dataclasses.replace(parts[field], target=target)
            return cls(data=data, **given | parts)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"method.name={name!r}: {error}") from error

    front = convolution.with_convolutions
    with_signals = functools.partial(_behind, "conv.width", front, conv, make)
    with_images = functools.partial(_behind, "image.file", images.with_images, image, with_signals)
    return _behind("text.file", bert.with_text, text, with_images, spec)


def method_of(
    config: ml_collections.ConfigDict, spec: DataSpec, *, target: Target | None = None
) -> Method:
    """The method of a configuration, behind the encoders that its sections name."""
    return make_method(config.method.to_dict(), spec, **fronts(config), target=target)


def fronts(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The sections of a configuration that say what stands before the method."""
    return {name: config[name].to_dict() for name in ("text", "image", "conv")}


def on(spec: DataSpec, method: Any) -> Any:
    """`method` for batches of a schema that differs from its own in its tasks' numbers alone."""
    inner = {"method": on(spec, method.method)} if isinstance(method, Front) else {}
    changes = {"data": dataclasses.replace(method.data, tasks=spec.tasks), **inner}
    linen = isinstance(method, nn.Module)
    return method.clone(**changes) if linen else dataclasses.replace(method, **changes)


def require_fit(config: ml_collections.ConfigDict, spec: DataSpec) -> None:
    """Raises ConfigError if the method cannot be applied to batches of a schema.

    It is traced on a batch without values; nothing is computed.
    """
    method = method_of(config, spec)

    def init():
        rngs = dict.fromkeys(("params", "dropout", "gate"), jax.random.key(0))
        return method.init(rngs, empty(spec, 2), train=False)

    try:
        jax.eval_shape(init)
    except ValueError as error:
        text = str(error)
        where = "method." if text.startswith("moe.") else "method: "
        raise ConfigError(f"{where}{text}") from error


def _behind(field: str, put, options: Mapping[str, Any], make, spec: DataSpec) -> Method:
    """What `make` makes for a schema, behind the encoder that a section's field asks for, if so."""
    if not options.get(field.partition(".")[2]):
        return make(spec)
    try:
        return put(make, spec, **options)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{field}: {error}") from error
