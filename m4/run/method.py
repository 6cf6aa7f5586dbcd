"""A method from its section of a configuration, behind the encoders that the files bring."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from m4.config import schema
from m4.errors import ConfigError
from m4.nn.pretrained import bert, images
from m4.resolve import resolve
from m4.specs import DataSpec
from m4.types import Method


def make_method(
    config: dict[str, Any],
    spec: DataSpec,
    *,
    text: Mapping[str, Any] = FrozenDict(),
    image: Mapping[str, Any] = FrozenDict(),
) -> Method:
    """The method that `config['name']` names, with the other entries as its fields.

    With `text['file']` a BERT reads the text modalities for it, with `image['file']` a ViT or a
    ResNet the images.
    """
    name = config.pop("name")
    module, attribute = schema.method_target(name)
    fields = {k: FrozenDict(v) if isinstance(v, Mapping) else v for k, v in config.items()}

    def make(data: DataSpec) -> Method:
        try:
            cls = resolve(f"{module}:{attribute}", module)
            for name, default in ((f.name, f.default) for f in dataclasses.fields(cls)):
                if isinstance(fields.get(name), FrozenDict) and dataclasses.is_dataclass(default):
                    fields[name] = dataclasses.replace(default, **fields[name])
            return cls(data=data, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"method.name={name!r}: {error}") from error

    with_images = functools.partial(_behind, "image", images.with_images, image, make)
    return _behind("text", bert.with_text, text, with_images, spec)


def _behind(section: str, put, options: Mapping[str, Any], make, spec: DataSpec) -> Method:
    """What `make` makes for a schema, behind the encoder that a section names, if it does."""
    if not options.get("file"):
        return make(spec)
    try:
        return put(make, spec, **options)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{section}.file: {error}") from error
