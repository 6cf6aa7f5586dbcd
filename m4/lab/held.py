"""Data that all cells of a study share: prepared once an arm, read once, placed once.

Letters: R rows, M modalities.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import config as configs
from m4.data import data_sets
from m4.data.loader import eval_batches
from m4.data.store import Store
from m4.run.workspace import open_incomplete, prepare, split_seed
from m4.types import Batch

# Fields of a configuration that are given to programs: others need no other program.
GIVEN = ("seed", "optim.lr", "optim.warmup_steps", "optim.end_fraction", "data.dir", "data.raw_dir")
MOST = 1 << 28  # bytes of a split's batches that stay on the device


@dataclasses.dataclass(frozen=True)
class Split:
    """A split that is predicted many times."""

    store: Store
    kept: dict[Any, tuple[int, list[Any]]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def patients(self) -> np.ndarray:
        """The patient of every row, [R]."""
        return self.store.columns(["patient"])["patient"]

    @functools.cached_property
    def present(self) -> np.ndarray:
        """What every row has, bool[R, M]."""
        return self.store.present()

    def batches(self, rows: int, place: Callable[[Batch], Batch], where: Any) -> Iterator:
        """(batch on the host, the same placed), all rows once; kept for `where` if they are few."""
        pairs = ((batch, place(batch)) for batch in eval_batches(self.store, rows))
        return self.once((rows, where), pairs, lambda pair: bytes_of(pair[0]))

    def once(self, key: Any, made: Iterator[Any], size: Callable[[Any], int]) -> Iterator[Any]:
        """What is `made` of batches; for `key` once, if there is room for all of its bytes."""
        if key in self.kept:
            yield from self.kept[key][1]
            return
        room, used, found = MOST - sum(n for n, _ in self.kept.values()), 0, []
        for one in made:
            used += size(one)
            found.append(one)
            if used > room:
                found.clear()
            yield one
        if used <= room:
            self.kept[key] = used, found


def bytes_of(tree: Any) -> int:
    """Of all arrays of a tree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


class Opener:
    """Opens data once for all cells that have the same: those of `size` are kept."""

    def __init__(self, size: int):
        self._open = functools.lru_cache(size)(_splits)
        self._folders: dict[str, Path] = {}

    def folder(self, config: ml_collections.ConfigDict) -> Path:
        """Of a cell's data, which are built if need be; once for seeds that share them."""
        flat = configs.flatten(config.to_dict())
        fixed = {k: v for k, v in flat.items() if k not in GIVEN or k.startswith("data.")}
        seed = data_sets.seed_of(data_sets.find(config.data.name), split_seed(config))
        key = json.dumps([fixed, seed], sort_keys=True, default=str)
        if key not in self._folders:
            self._folders[key] = prepare(config)
        return self._folders[key]

    def __call__(self, config: ml_collections.ConfigDict) -> dict[str, Split]:
        """The splits of a cell's data."""
        parts = {part: config[part].to_dict() for part in ("train", "eval")}
        asked = {k: {n: own[n] for n in ("batch_size", "missing")} for k, own in parts.items()}
        drawn = any(own["missing"] for own in asked.values())  # seeds share what no seed draws
        asked |= {"seed": split_seed(config) if drawn else 0, "data": {}}
        return self._open(self.folder(config), json.dumps(asked, sort_keys=True))


def _splits(folder: Path, asked: str) -> dict[str, Split]:
    config = ml_collections.ConfigDict(json.loads(asked))
    return {name: Split(open_incomplete(config, folder, name)) for name in ("train", "val", "test")}
