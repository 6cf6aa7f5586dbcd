"""Every method of m4, small: whatever the trainer does must hold for all of them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.core import FrozenDict

from m4 import sharding
from m4.config import code
from m4.train import step as steps
from tests import properties

NAMES = code.method_names()
PUBLISHED = {p.parent.name for p in code.FOLDER.glob("*/model.py")}
# For `parametrize`: the fusion baselines take the same parts through the same steps, and are slow.
CASES = [n if n in PUBLISHED else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
FAST = {"xla_backend_optimization_level": 0}
SIZES = {"width": 8, "depth": 2, "num_heads": 2, "num_queries": 3, "dropout": 0.0}
SIZES |= {"task_width": 8, "statistics_hidden": 4, "embed_time": 4}
MOE = {"num_experts": 10, "top_k": 2, "hidden": 8}


def small(name: str, *, moe=(), **fields):
    """The method with sizes for a test, no balance losses and a router that draws nothing."""
    cls = code.method_class(name)
    known = {field.name: field.default for field in dataclasses.fields(cls)}
    if "moe" in known:
        options = {k: v for k, v in (MOE | dict(moe)).items() if hasattr(known["moe"], k)}
        fields["moe"] = dataclasses.replace(known["moe"], **options)
    sizes = {k: v for k, v in SIZES.items() if k in known}
    none = {"aux_weights": FrozenDict()} if "aux_weights" in known else {}
    return cls(data=properties.PAIR, **(sizes | none | fields))


def batch(rows: int = 16):
    """Rows of which some have no label, some no weight: the last ones, so that parts differ."""
    found = properties.random_batch(properties.PAIR, rows=rows)
    for target in found.targets.values():
        target.mask[rows // 2 :: 3] = 0
    found.targets["death"].mask[: 3 * rows // 4] = 0
    weight = np.where(np.arange(rows) < rows - 2, found.weight, 0).astype(np.float32)
    return found.replace(weight=weight)


def params(method, first):
    """Fresh parameters, without boxes."""
    init = jax.jit(lambda: sharding.unbox(steps.init_params(method, first, seed=0)))
    return init.lower().compile(FAST)()
