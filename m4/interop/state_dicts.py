"""Tensor files: `.safetensors`, or what torch.save wrote; neither can run anything here.

A checkpoint is often more than a state dict. What wraps one (`WRAPPERS`), the prefixes of
DataParallel and torch.compile, and what lies beside it (an optimiser's state, options, scores) is
taken off, and said.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4 import USE, atomic, regular
from m4.errors import ConfigError, DataError, SaveError
from m4.interop import torch_file
from m4.nn.pretrained import safetensors

SAFE = ".safetensors"
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
PREFIXES = ("module", "_orig_mod")  # of DataParallel and of torch.compile, anywhere in a name
OTHERS = {  # how files begin that are taken for weights
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
    b"<": "is a web page, not the file itself; download that",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"\x89HDF": "is an HDF5 file, no file of torch.save",
}
MOST_WRAPPERS = 10  # around each other
LONGEST = 1000  # characters of a name: a few that many share would fill the memory
BESIDE = ("optim", "sched", "scaler")  # parts of the names of what is never a model's


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by name, in the file's own order if that says anything, and what was taken off."""

    tensors: dict[str, np.ndarray]
    ordered: bool = False
    notes: Sequence[str] = ()


def read(path: Path) -> StateDict:
    """Tensors by name; names of nested dictionaries are joined by dots.

    Raises DataError for a file that is missing or damaged, or that holds no tensors but something
    else, with a line for every tensor that has no numbers in a form that NumPy knows.
    """
    tree = _tree(path)
    if not isinstance(tree, Mapping):
        raise DataError(f"{path}: holds a {type(tree).__name__}, expected a state dict")
    try:
        tree, notes = _unwrapped(tree, path)
        pairs = [*_flatten(tree)]
    except (RecursionError, TypeError, ValueError, MemoryError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: holds no plain state dict ({why})") from None
    flat = dict(pairs)
    if len(flat) < len(pairs):
        raise DataError(f"{path}: two of its tensors have the same name")
    names = {full: ".".join(p for p in full.split(".") if p not in PREFIXES) for full in flat}
    found = {names[full]: tensor for full, tensor in flat.items()}
    if len(found) < len(flat):
        name = collections.Counter(names.values()).most_common(1)[0][0]
        raise DataError(f"{path}: {name} is there twice, with and without a prefix")
    if found.keys() != flat.keys():
        notes.append(f"prefixes {' and '.join(f'{p}.' for p in PREFIXES)} were taken off")
    if not found:
        raise DataError(f"{path}: holds no tensors")
    lacks = [f"{path}: {name} {tensor.lacks}" for name, tensor in found.items() if tensor.lacks]
    if lacks:
        raise DataError(*lacks)
    tensors = {name: tensor.values for name, tensor in found.items() if tensor.values is not None}
    return StateDict(tensors, path.suffix != SAFE, notes)


def _tree(path: Path) -> Any:
    """What is in a file, by what it begins with."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a file")
    try:
        with regular.opened(path) as file:
            start, size = file.read(64), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({why})") from None
    if not start:
        raise DataError(f"{path}: is empty")
    safe = path.suffix == SAFE and int.from_bytes(start[:8], "little") <= size
    for begin, words in OTHERS.items():
        if start.startswith(begin) and not safe:  # whose length may begin like anything
            raise DataError(f"{path}: {words}")
    if path.suffix == SAFE:
        return _safetensors(path)
    if start.startswith(b"PK\x03\x04"):  # a zip
        return torch_file.read(path)
    if start.startswith(b"\x80"):  # a pickle
        return _old_torch(path)
    raise DataError(f"{path}: is damaged, or no file of torch.save; nothing in it was executed")


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


def _safetensors(path: Path) -> dict[str, torch_file.Tensor]:
    try:
        found = safetensors.read(path)
    except (ValueError, OSError) as error:
        why = " ".join(str(error).removeprefix(f"{path}: ").split())[:160]
        raise DataError(f"{path}: cannot be read as tensors alone: {why}") from None
    return {name: torch_file.Tensor(x) for name, x in found.items()}


def _unwrapped(tree: Mapping, path: Path) -> tuple[Mapping, list[str]]:
    """Without wrappers and companions, and what is to be said of them."""
    notes: list[str] = []
    beside: set[str] = set()
    holding = _holding(tree)
    while True:
        kept: dict[Any, Any] = {
            key: x
            for key, x in tree.items()
            if isinstance(x, torch_file.Tensor) or (id(x) in holding and not _companion(key))
        }
        beside |= {_text(key) for key in tree if key not in kept}
        tree = kept
        wraps = [key for key in WRAPPERS if isinstance(tree.get(key), Mapping)]
        if not wraps:
            break
        if len(wraps) > 1:
            names = " and ".join(map(repr, wraps))
            raise DataError(f"{path}: holds weights under {names}: save one of them by itself")
        if len(notes) == MOST_WRAPPERS:  # one that lies in itself would be entered for ever
            raise ValueError(f"more than {MOST_WRAPPERS} wrappers around each other")
        beside |= {_text(key) for key in tree} - {*wraps}
        tree = tree[wraps[0]]
        notes.append(f"the state dict is under {wraps[0]!r}")
    if beside:
        notes.append(f"beside it, not taken: {', '.join(sorted(beside))}")
    return tree, notes


def _companion(key: Any) -> bool:
    """Whether a dictionary is an optimiser's or a schedule's; a tensor is always the model's."""
    return any(part in _text(key) for part in BESIDE)


def _text(key: Any) -> str:
    """A key as a name; of what is no text, as Python writes it."""
    return key if isinstance(key, str) else repr(key)


def _holding(tree: Mapping) -> set[int]:
    """Identities of the dictionaries, at any depth, that have tensors at any depth.

    Each is looked at once, in however many places it lies.
    """
    above: dict[int, list[int]] = {id(tree): []}
    left, found = [tree], []
    while left:
        one = left.pop()
        for x in one.values():
            if isinstance(x, torch_file.Tensor):
                found.append(id(one))
            elif isinstance(x, Mapping):
                if id(x) not in above:
                    above[id(x)] = []
                    left.append(x)
                above[id(x)].append(id(one))
    holding: set[int] = set()
    while found:
        one = found.pop()
        if one not in holding:
            holding.add(one)
            found += above[one]
    return holding


def _flatten(
    tree: Mapping, prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, torch_file.Tensor]]:
    """Numbers and texts beside the tensors (epochs, scores) are passed over.

    Raises ValueError for a dictionary in two places: a few of them would have names without end;
    and for a name that is longer than any model's.
    """
    seen = set() if seen is None else seen
    if id(tree) in seen:
        raise ValueError("a dictionary lies in two places")
    seen.add(id(tree))
    for key, value in tree.items():
        if not isinstance(value, Mapping | torch_file.Tensor):
            continue
        name = f"{prefix}{_text(key)}"
        if len(name) > LONGEST:
            raise ValueError(f"a name of more than {LONGEST} characters")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.", seen)
        else:
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


def _old_torch(path: Path) -> Any:
    """What torch before 1.6 wrote, by torch itself, which runs nothing of it."""
    torch = _torch()
    known: dict[int, dict] = {}  # a dictionary that lies in many places stays one

    def plain(x):
        if isinstance(x, Mapping):
            if id(x) not in known:
                known[id(x)] = {}
                known[id(x)] |= {key: plain(value) for key, value in x.items()}
            return known[id(x)]
        return torch_file.Tensor(x.detach().cpu().numpy()) if hasattr(x, "detach") else x

    try:
        return plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise DataError(
            f"{path}: is damaged, or no file of torch.save ({type(error).__name__}); nothing in it"
            " was executed"
        ) from None


def _save_torch(tree: Mapping, path: Path) -> None:
    torch = _torch()

    def tensor(x):
        if isinstance(x, Mapping):
            return collections.OrderedDict((key, tensor(value)) for key, value in x.items())
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
