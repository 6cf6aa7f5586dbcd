"""Tensor files: `.safetensors` without torch, anything else with torch and `weights_only`."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4 import USE, atomic
from m4.errors import ConfigError, DataError, SaveError
from m4.nn.pretrained import safetensors

SAFE = ".safetensors"


def read(path: Path, *, root: str = "") -> dict[str, np.ndarray]:
    """Tensors by name; names of nested dictionaries are joined by dots.

    Where the file has a dictionary `root`, only that is read. Raises DataError for a file that
    is missing or damaged, or that is more than tensors in dictionaries.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    load = safetensors.read if path.suffix == SAFE else _load_torch
    try:
        tree = load(path)
    except ConfigError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:160]
        raise DataError(
            f"{path}: cannot be read as tensors alone ({type(error).__name__}: {why}); nothing in"
            " it was executed. If you trust it, save its state dict by itself with torch.save"
        ) from None
    if not isinstance(tree, Mapping):
        raise DataError(f"{path}: holds a {type(tree).__name__}, expected a state dict")
    inner = tree.get(root)
    whole: Mapping = inner if isinstance(inner, Mapping) else tree
    tensors = dict(_flatten(whole, "", path))
    if not tensors:
        raise DataError(f"{path}: holds no tensors")
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray], *, sections: Sequence[str] = ()) -> None:
    """Replaces `path` at once; in torch files names under `sections` become dictionaries.

    What the weights may be used for stands in the file: in the header of a `.safetensors` file, and
    where torch keeps the versions of a state dict's modules, which loaders pass over.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced(path) as partial:
            if path.suffix == SAFE:
                safetensors.write(tensors, partial, metadata={"use": USE})
            else:
                _save_torch(_nest(tensors, sections), partial)
    except OSError as error:
        raise SaveError(f"{path}: not written ({error.strerror or error})") from error


def _flatten(tree: Mapping, prefix: str, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers and texts beside the tensors (epochs, scores) are passed over."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.", path)
        elif hasattr(value, "detach"):
            try:
                yield name, value.detach().cpu().numpy()
            except TypeError:
                raise DataError(f"{path}: {name} is {value.dtype}, expected float32") from None
        elif isinstance(value, np.ndarray):
            yield name, value


def _nest(tensors: Mapping[str, np.ndarray], sections: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, x in tensors.items():
        here, rest = tree, name
        for section in sorted(sections, key=len):
            if name.startswith(f"{section}."):
                key = section[len(name) - len(rest) :]
                here, rest = here.setdefault(key, {}), name[len(section) + 1 :]
        here[rest] = x
    return tree


def _load_torch(path: Path) -> Any:
    return _torch().load(path, map_location="cpu", weights_only=True)


def _save_torch(tree: Mapping, path: Path) -> None:
    torch = _torch()

    def tensor(x):
        if isinstance(x, Mapping):
            return OrderedDict((key, tensor(value)) for key, value in x.items())
        return torch.from_numpy(np.array(x))

    whole = tensor(tree)
    setattr(whole, "_metadata", {"": {"use": USE}})  # noqa: B010 (where torch looks for it)
    torch.save(whole, path)


def _torch():
    try:
        import torch
    except ImportError:
        raise ConfigError(
            "torch files need torch: pip install 'm4-moe[torch]', or use a .safetensors file"
        ) from None
    return torch
