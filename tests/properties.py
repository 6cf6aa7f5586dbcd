"""Small schemas and methods for tests, and the properties of `m4.audit`, asked of them.

    @pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
    def test_property(probe, check):
        check(probe)

One probe compiles one prediction and one gradient for a fixed batch shape; every check reuses
them. Letters: B rows, M modalities.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from m4 import sharding
from m4.audit import laws
from m4.audit.altered import drop_modalities, pollute, replace_rows, take
from m4.audit.laws import (
    batch_composition_invariance,
    empty_row_counts_nowhere,
    every_modality_matters,
    every_parameter_learns,
    garbage_changes_no_bit,
    patient_permutation_equivariance,
)
from m4.audit.probe import Probe, parameter_shapes, probe, random_like, random_params
from m4.audit.random_rows import ROWS, random_batch
from m4.config import code
from m4.specs import DataSpec, ModalitySpec, TaskSpec

__all__ = [
    "ROWS",
    "Probe",
    "batch_composition_invariance",
    "drop_modalities",
    "empty_row_counts_nowhere",
    "every_modality_matters",
    "every_parameter_learns",
    "garbage_changes_no_bit",
    "parameter_shapes",
    "patient_permutation_equivariance",
    "pollute",
    "probe",
    "random_batch",
    "random_like",
    "random_params",
    "replace_rows",
    "take",
]
CHECKS = laws.LAWS

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (5, 3)),
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("labs", "series", (4, 2)),
        ModalitySpec("notes", "vectors", (2, 5)),
        ModalitySpec("icd", "codes", (3,), dtype="int32", vocab=7),
    ),
    tasks=(
        TaskSpec("death", "binary"),
        TaskSpec("phenotype", "multilabel", dim=3),
        TaskSpec("ward", "multiclass", dim=4),
        TaskSpec("stay", "regression"),
    ),
)

PAIR = DataSpec(SPEC.modalities[:2], SPEC.tasks[:2])  # for what compiles much
THREE = DataSpec(SPEC.modalities[1:4], SPEC.tasks, hours=4.0)  # what releases of today can take
IMAGES = DataSpec(
    (ModalitySpec("fundus", "image", (1, 8, 8, 3)), ModalitySpec("oct", "image", (1, 8, 8, 3))),
    (TaskSpec("risk", "binary"), TaskSpec("grade", "multiclass", dim=3)),
)

# Part of a field's name -> its size in a small method; the first that fits.
SMALL = {
    "heads": 2, "depth": 1, "experts": 3, "patches": 2, "patch": 4, "queries": 3, "width": 8,
    "hidden": 8, "mlp": 8, "embed_time": 8,
}  # fmt: skip


def method_files() -> list[tuple[str, str]]:
    """Name and fidelity of every file of a method in m4/methods."""
    return [(name, f) for name in code.method_names() for f in code.method_modules(name)]


def small(cls: Any, spec: DataSpec, *, moe: Mapping[str, Any] = FrozenDict(), **fields: Any) -> Any:
    """A method of any class with little of everything and, unless said, no auxiliary losses."""
    sizes: dict[str, Any] = {"aux_weights": FrozenDict()}
    for field in dataclasses.fields(cls):
        fits = [size for part, size in SMALL.items() if part in field.name]
        if type(field.default) is int and fits:
            sizes[field.name] = min(field.default, fits[0])
    own = {field.name: field.default for field in dataclasses.fields(cls)}
    if "moe" in own:
        sizes["moe"] = dataclasses.replace(own["moe"], **{"hidden": 8, **moe})
    return cls(spec, **{k: v for k, v in sizes.items() if k in own} | fields)


def first_small(cls: Any, *specs: DataSpec, **fields: Any) -> Any:
    """A small method of the first schema that the class takes; it must take one of them."""
    refusals = []
    for spec in specs:
        method = small(cls, spec, **fields)
        try:
            parameter_shapes(method)
        except ValueError as error:
            refusals.append(str(error))
        else:
            return method
    raise AssertionError(refusals)


def tree_close(a, b, **tolerance):
    """Within float32 rounding of the same algorithm."""
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def same_on_eight_devices(method, *, rows: int = 8):
    """Training loss and gradients of a batch split over 8 devices equal those of one device."""
    batch = random_batch(method.data, rows=rows)
    params = random_params(method)
    rngs = {"dropout": jax.random.key(1), "gate": jax.random.key(2)}

    def loss(params, batch):
        out = method.apply({"params": params}, batch, train=True, rngs=rngs)
        return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

    def run(devices):
        mesh = sharding.make_mesh({"data": devices})
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
            where = (sharding.replicated(mesh), sharding.rows(mesh))
            step = jax.jit(jax.value_and_grad(loss), in_shardings=where)
            return step(params, sharding.put_batch(batch, mesh))

    (one, grads_one), (eight, grads_eight) = run(1), run(8)
    np.testing.assert_allclose(eight, one, rtol=1e-6)
    tree_close(grads_eight, grads_one)


def parameter_tree(method) -> str:
    """One line 'path shape' per parameter."""
    return "".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {x.shape}\n"
        for path, x in jax.tree_util.tree_leaves_with_path(parameter_shapes(method))
    )
