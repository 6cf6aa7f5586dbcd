"""Flex-MoE, FlexCare, M4oE and M3H as released against PyTorch models of the same structure."""

import dataclasses
import functools

import numpy as np
import pytest
from flax.core import FrozenDict

from m4.methods.flexcare import torch_layout as flexcare_table
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.methods.flexmoe import torch_layout as flexmoe_table
from m4.methods.flexmoe.released import ReleasedFlexMoE
from m4.methods.m3h.released import ReleasedM3H
from m4.methods.m4oe import torch_layout as m4oe_table
from m4.methods.m4oe.released import ReleasedM4oE
from m4.moe.options import SoftOptions
from m4.nn.encoders.volume import VolumeEncoder
from m4.nn.torch_table import SWAP, Layout, linears, one, stack
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target
from tests.interop import shared
from tests.interop.parity import (
    close,
    imported,
    noise,
    randomise,
    run,
    same_gradients,
    same_noise,  # noqa: F401 (a fixture)
    tensors,
    torch,
)
from tests.timing.method_jax import FLEXCARE_TASKS as CARE

ROWS = 4
# Of weights times 4 in float32, in which PyTorch is as far from double precision as m4 or farther.
LOSS, GRADIENT = {1: 1e-5, 4: 1e-4}, {1: 1e-5, 4: 1e-3}


def make_batch(inputs, targets, task=-1):
    rows = np.arange(len(next(iter(inputs.values())).present), dtype=np.int32)
    return Batch(inputs, targets, rows * 0 + task, np.ones(len(rows), np.float32), rows)


def table_stream(rng, here, features):
    values = rng.standard_normal((len(here), features)).astype(np.float32) * here[:, None]
    return Stream(values, here[:, None], here, None, np.repeat(here[:, None], features, 1))


def image_stream(rng, here, shape):
    values = rng.standard_normal((len(here), *shape)).astype(np.float32)
    values *= here[:, None, None, None, None]
    return Stream(values, np.repeat(here[:, None], shape[0], 1), here)


def labels(rng, task, rows=ROWS):
    mask = np.ones((rows, task.dim) if task.kind == "multilabel" else rows, np.float32)
    if task.kind == "multiclass":
        return Target(rng.integers(0, task.dim, rows).astype(np.int32), mask)
    return Target(rng.integers(0, 2, (rows, task.dim)).astype(np.float32), mask)


def with_experts(cls, spec, **sizes):
    """`cls(spec, ...)`, with the sizes of experts where they belong."""
    experts = {n: sizes.pop(n) for n in ("num_experts", "top_k", "hidden") if n in sizes}
    return cls(spec, dataclasses.replace(cls.moe, engine="dense", **experts), **sizes)


# --- Flex-MoE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "depth", "present", "scale"),
    [
        ("GCB", 1, [[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], 1),
        ("GCB", 1, [[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], 4),
        ("GC", 3, [[1, 1], [1, 1], [1, 1], [1, 1]], 1),
        ("IGCB", 2, [[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 1]], 1),
    ],
)
def test_flexmoe(monkeypatch, names, depth, present, scale):
    from tests.rivals.flexmoe import Model

    rng, here_BM = np.random.default_rng(1), np.array(present, bool)
    features = {n: (24, 24, 25) if n == "I" else 7 + i for i, n in enumerate(names)}
    spec = DataSpec(
        tuple(
            ModalitySpec(n, "table", (f,)) if n != "I" else ModalitySpec(n, "image", (*f, 1))
            for n, f in features.items()
        ),
        (TaskSpec("diagnosis", "multiclass", dim=3),),
    )
    sizes = {"width": 8, "num_heads": 2, "num_patches": 2, "depth": depth, "hidden": 6}
    sizes |= {"num_experts": 16, "top_k": 3, "dropout": 0.0}
    model = randomise(Model(features=features, volume_dropout=0.0, **sizes), scale=scale)
    volume = functools.partial(VolumeEncoder, dropout=0.0)
    monkeypatch.setattr("m4.methods.flexmoe.patches.VolumeEncoder", volume)
    method = with_experts(ReleasedFlexMoE, spec, **sizes)
    layout = flexmoe_table.layout(method)
    params = imported(method, layout, model, shared.shapes(method))
    inputs = {
        n: image_stream(rng, here_BM[:, m], (*f, 1))
        if n == "I"
        else table_stream(rng, here_BM[:, m], f)
        for m, (n, f) in enumerate(features.items())
    }
    target = labels(rng, spec.tasks[0])
    batch = make_batch(inputs, {"diagnosis": target})
    theirs = tensors({n: inputs[n].values for n in names} | {"present": here_BM})
    for n in set(names) & {"I"}:
        theirs[n] = theirs[n].permute(0, 4, 1, 2, 3)
    theirs["label"] = torch.from_numpy(target.value).long()
    eps = noise((ROWS * len(names) * 2, 16)).reshape(ROWS, len(names), 2, 16)
    for layer in list(model.fusion_model.network)[:-1:2]:
        draws = iter(range(2 * len(names)))  # forward is called twice below
        layer.mlp.gate.randn = lambda shape, it=draws: torch.from_numpy(
            eps[:, next(it) % len(names)].reshape(-1, 16)
        )
    monkeypatch.setattr("jax.random.normal", lambda key, shape=(), *_: noise(shape))
    logits, aux, terms, grads = run(method, params, batch)
    losses = model.loss(theirs)
    close(logits["diagnosis"], model(theirs)[0].detach(), "logits", rtol=LOSS[scale])
    close(terms["diagnosis"], losses["task"].detach(), "task", rtol=LOSS[scale])
    losses["total"].backward()
    close(sum(aux.values()), losses["router"].detach(), "router", rtol=LOSS[scale])
    close(terms["total"], losses["total"].detach(), "total", rtol=LOSS[scale])
    same_gradients(layout, model, grads, rtol=GRADIENT[scale])


# --- FlexCare -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("task", ["mortality", "los", "diag"])
def test_flexcare(monkeypatch, task, scale):
    # A row has nothing, and of the findings of `diag` any number is known: both count as there.
    from tests.rivals.flexcare import Model

    rng, index = np.random.default_rng(2), [t.name for t in CARE].index(task)
    here = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 1]], bool)
    spec = DataSpec(
        (
            ModalitySpec("ehr", "vectors", (5, 9)),
            ModalitySpec("cxr", "image", (1, 16, 16, 3)),
            ModalitySpec("note", "vectors", (4, 6)),
        ),
        CARE,
    )
    sizes = {"width": 8, "depth": 2, "num_heads": 2, "mlp": 12, "num_experts": 5, "top_k": 2}
    sizes |= {"dropout": 0.0, "patch": 8}
    model = randomise(Model(features=9, words=6, **sizes), scale=scale)
    method = with_experts(ReleasedFlexCare, spec, hidden=8, **sizes)
    layout = flexcare_table.layout(method)
    params = imported(method, layout, model, shared.shapes(method))
    inputs, theirs = {}, {"present": torch.from_numpy(here), "task": task}
    for m, (name, steps, size) in enumerate((("ehr", 5, 9), ("cxr", 0, 0), ("note", 4, 6))):
        if name == "cxr":
            inputs[name] = image_stream(rng, here[:, m], (1, 16, 16, 3))
            theirs[name] = tensors(inputs[name].values[:, 0].transpose(0, 3, 1, 2))
            continue
        length = np.where(here[:, m], rng.integers(1, steps + 1, ROWS), 0)
        mask = np.arange(steps) < length[:, None]
        values = rng.standard_normal((ROWS, steps, size)).astype(np.float32) * mask[..., None]
        inputs[name] = Stream(values, mask, here[:, m], np.zeros(mask.shape, np.float32))
        theirs |= {name: tensors(values), f"{name}_length": torch.from_numpy(length)}
    targets = {t.name: labels(rng, t) for t in CARE}
    targets["diag"].mask[:] = rng.random((ROWS, 14)) < [[0.1], [0.9], [0.5], [0.3]]
    label = tensors(targets[task].value)
    if task == "diag":
        label = torch.where(torch.from_numpy(targets[task].mask > 0), label, -1.0)
    theirs["label"] = label.long() if task == "los" else label
    ready = np.stack([here[:, list(m)].all(1) for m in model_members()], 1).ravel()
    model.moe.randn = lambda shape: torch.from_numpy(noise((ROWS * 7, 5))[ready])
    monkeypatch.setattr("jax.random.normal", lambda key, shape=(), *_: noise(shape))
    logits, aux, terms, grads = run(method, params, make_batch(inputs, targets, index))
    losses = model.loss(theirs)
    losses["total"].backward()
    close(logits[task], model(theirs)[0].detach(), "logits", rtol=LOSS[scale])
    close(terms[task], losses["task"].detach(), "task", rtol=LOSS[scale])
    close(aux["covariance"], losses["covariance"].detach(), "covariance", rtol=LOSS[scale])
    balance = 0.01 * (aux["importance"] + aux["load"])
    close(balance, losses["balance"].detach(), "balance", rtol=LOSS[scale])
    close(terms["total"], losses["total"].detach(), "total", rtol=LOSS[scale])
    same_gradients(layout, model, grads, rtol=GRADIENT[scale])


def model_members():
    from tests.rivals.flexcare import MEMBERS

    return MEMBERS


# --- M4oE ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 4])
def test_m4oe(scale):
    from tests.rivals.m4oe import Model

    rng, depth = np.random.default_rng(3), 2
    tasks = tuple(
        TaskSpec(n, "multiclass", dim=d) for n, d in (("density", 4), ("risk", 2), ("birads", 3))
    )
    names = ("cc", "mlo", "2dcc", "2dmlo")
    spec = DataSpec(tuple(ModalitySpec(n, "image", (1, 8, 8, 3)) for n in names), tasks)
    sizes = {"width": 8, "hidden": 6, "num_heads": 2, "num_experts": 3, "modality_experts": 2}
    sizes |= {"fusion_experts": 2, "vit_depth": depth, "vit_heads": 2, "patch": 4}
    sizes |= {"depth": depth, "fusion_depth": depth}
    weights = {"density": (0.7, 0.8, 0.9, 0.6), "risk": (0.1, 0.9), "birads": (0.5, 0.6, 0.9)}
    model = Model(
        image=8, class_weights=[torch.tensor(w).double() for w in weights.values()], **sizes
    )
    model = randomise(model, scale=scale)
    moe = SoftOptions(
        num_experts=sizes.pop("num_experts"), hidden=sizes.pop("hidden"), inputs="unit"
    )
    method = ReleasedM4oE(
        spec, moe, class_weights=FrozenDict(weights), aux_weights=FrozenDict(information=0.05),
        **sizes,
    )  # fmt: skip
    layout = m4oe_table.layout(method)
    params = imported(method, layout, model, shared.shapes(method))
    here = np.ones(ROWS, bool)
    here[[1, 3]] = False  # a missing view is a zero image like any other; row 3 has none at all
    everyone = np.arange(ROWS) != 3
    inputs = {n: image_stream(rng, here if n == "mlo" else everyone, (1, 8, 8, 3)) for n in names}
    targets = {t.name: labels(rng, t) for t in tasks}
    targets["birads"].mask[2] = 0  # the row then trains no task
    theirs = {
        "images": [tensors(inputs[n].values[:, 0].transpose(0, 3, 1, 2)) for n in names],
        "labels": [
            torch.from_numpy(np.where(t.mask > 0, t.value, -2)).long() for t in targets.values()
        ],
    }
    logits, aux, terms, grads = run(method, params, make_batch(inputs, targets))
    losses = model.loss(theirs)
    losses["total"].backward()
    for t, expected in enumerate(model(theirs)[0]):
        close(logits[tasks[t].name], expected.detach(), tasks[t].name, rtol=LOSS[scale])
        close(terms[tasks[t].name], losses[f"task{t}"].detach(), tasks[t].name, rtol=LOSS[scale])
    # Almost nothing is left of a sum of probabilities times logarithms near 0: absolute.
    np.testing.assert_allclose(
        aux["information"],
        losses["information"].item(),
        atol=ROWS * LOSS[scale] / 10,
        rtol=LOSS[scale],
    )
    close(terms["total"], losses["total"].detach(), "total", rtol=LOSS[scale])
    same_gradients(layout, model, grads, rtol=GRADIENT[scale])


# --- M3H ----------------------------------------------------------------------------------------


def test_m3h():
    from tests.rivals.m3h import Model

    rng, sizes = np.random.default_rng(4), (5, 3)
    kinds = (("binary", 1), ("multiclass", 3), ("regression", 1), ("binary", 1))
    tasks = tuple(TaskSpec(f"t{i}", kind, dim=dim) for i, (kind, dim) in enumerate(kinds))
    spec = DataSpec(tuple(ModalitySpec(f"m{i}", "table", (f,)) for i, f in enumerate(sizes)), tasks)
    fields = {"width": 8, "task_width": 6, "dropout": 0.0}
    model = randomise(Model(features=sizes, tasks=kinds, **fields))
    method = ReleasedM3H(spec, **fields)
    entries = [
        stack("cross_task/projection", [f"project.{t}.weight" for t in range(4)], SWAP),
        one("cross_task/task", "task.weight", SWAP),
        *(one(f"cross_task/{n}/kernel", f"{n}.weight", SWAP) for n in ("query", "key", "value")),
        *linears("heads/dim_1", [f"heads.{t}" for t in (0, 2, 3)]),
        *linears("heads/dim_3", ["heads.1"]),
    ]
    for i in range(2):
        for part in ("up", "down"):
            entries += linears(f"encoder/m{i}_{part}", [f"encoders.{i}.{part}"])
    layout = Layout(entries)
    params = imported(method, layout, model, shared.shapes(method))
    here = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
    inputs = {f"m{i}": table_stream(rng, here[:, i], f) for i, f in enumerate(sizes)}
    targets = {t.name: labels(rng, t) for t in tasks}
    theirs = {
        "values": [tensors(inputs[f"m{i}"].values) for i in range(2)],
        "present": torch.from_numpy(here),
        "labels": [tensors(t.value) for t in targets.values()],
    }
    theirs["labels"][1] = theirs["labels"][1].long()
    logits, _, terms, grads = run(method, params, make_batch(inputs, targets))
    total = model.loss(theirs)["total"]
    total.backward()
    for t, expected in enumerate(model(theirs)):
        close(logits[f"t{t}"], expected.detach(), f"t{t}")
    close(terms["total"], total.detach(), "total")
    same_gradients(layout, model, grads)
