"""Random weights and batches of every method as released, for m4 and for its PyTorch rival alike.

A case is what a method, its sizes and a seed give. `size` is that of the weights: 1 is PyTorch's
own spread of initial values, with biases, positions and tokens, which start at zero, awake.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.core import FrozenDict

from m4.methods.flexcare import torch_layout as flexcare_table
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.methods.flexmoe import torch_layout as flexmoe_table
from m4.methods.flexmoe.released import ReleasedFlexMoE
from m4.methods.fusemoe import torch_layout as fusemoe_table
from m4.methods.fusemoe.released import ReleasedFuseMoE
from m4.methods.m3h.released import ReleasedM3H
from m4.methods.m4oe import torch_layout as m4oe_table
from m4.methods.m4oe.released import ReleasedM4oE
from m4.moe.options import MoEOptions, SoftOptions
from m4.nn.torch_table import SWAP, Layout, linears, one, stack
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target
from tests.interop.parity import draw, noise, tensors, torch
from tests.timing.method_jax import FLEXCARE_TASKS as CARE

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """Both models, in double precision that of PyTorch, and one batch for each."""

    method: Any
    layout: Layout
    model: Any
    batch: Batch
    theirs: Any
    ours: Callable[[Arrays, Arrays, Arrays], Arrays]  # logits, aux losses, terms -> by name
    expected: Callable[[Any, Any], Arrays]  # of the model and its batch: the same names
    least: Mapping[str, float] = FrozenDict()  # what is smaller is compared absolutely


def make_batch(inputs, targets, task=-1):
    """A batch of rows that all count."""
    rows = np.arange(len(next(iter(inputs.values())).present), dtype=np.int32)
    return Batch(inputs, targets, rows * 0 + task, np.ones(len(rows), np.float32), rows)


def table_stream(rng, here, features):
    """A table, of the rows that are `here`."""
    values = rng.standard_normal((len(here), features)).astype(np.float32) * here[:, None]
    return Stream(values, here[:, None], here, None, np.repeat(here[:, None], features, 1))


def image_stream(rng, here, shape):
    """Images or a volume, of the rows that are `here`."""
    values = rng.standard_normal((len(here), *shape)).astype(np.float32)
    values *= here[:, None, None, None, None]
    return Stream(values, np.repeat(here[:, None], shape[0], 1), here)


def labels(rng, task, rows):
    """A label of every row."""
    mask = np.ones((rows, task.dim) if task.kind == "multilabel" else rows, np.float32)
    if task.kind == "multiclass":
        return Target(rng.integers(0, task.dim, rows).astype(np.int32), mask)
    return Target(rng.integers(0, 2, (rows, task.dim)).astype(np.float32), mask)


def with_experts(cls, spec, **sizes):
    """`cls(spec, ...)`, with the sizes of experts where they belong."""
    experts = {n: sizes.pop(n) for n in ("num_experts", "top_k", "hidden") if n in sizes}
    return cls(spec, dataclasses.replace(cls.moe, engine="dense", **experts), **sizes)


# --- Flex-MoE -----------------------------------------------------------------------------------


def flexmoe(seed, size=1.0, *, names="GCB", depth=1, present: Sequence | None = None, **sizes):
    """Tables but `I`, a volume; `present` of every row and modality."""
    from tests.rivals.flexmoe import Model

    rng = np.random.default_rng([seed, 1])
    here_BM = rng.random((4, len(names))) < 0.6 if present is None else np.array(present, bool)
    here_BM[~here_BM.any(1), 0] = True
    rows, features = len(here_BM), {n: (24, 24, 25) if n == "I" else 7 + ord(n) % 5 for n in names}
    spec = DataSpec(
        tuple(
            ModalitySpec(n, "table", (f,)) if n != "I" else ModalitySpec(n, "image", (*f, 1))
            for n, f in features.items()
        ),
        (TaskSpec("diagnosis", "multiclass", dim=3),),
    )
    sizes = {"width": 8, "num_heads": 2, "num_patches": 2, "depth": depth, "hidden": 6} | sizes
    sizes = {"num_experts": 16, "top_k": 3, "dropout": 0.0} | sizes
    model = draw(Model(features=features, volume_dropout=0.0, **sizes), seed, size)
    method = with_experts(ReleasedFlexMoE, spec, **sizes)
    inputs = {
        n: image_stream(rng, here_BM[:, m], (*f, 1))
        if n == "I"
        else table_stream(rng, here_BM[:, m], f)
        for m, (n, f) in enumerate(features.items())
    }
    target = labels(rng, spec.tasks[0], rows)
    theirs = tensors({n: inputs[n].values for n in names} | {"present": here_BM})
    for n in set(names) & {"I"}:
        theirs[n] = theirs[n].permute(0, 4, 1, 2, 3)
    theirs["label"] = torch.from_numpy(target.value).long()
    num, patches, experts = len(names), sizes["num_patches"], sizes["num_experts"]
    eps = noise((rows * num * patches, experts)).reshape(rows, num, patches, experts)
    for layer in list(model.fusion_model.network)[:-1:2]:
        layer.mlp.gate.calls = 0  # one call a modality, over and over

        def randn(shape, gate=layer.mlp.gate):
            gate.calls += 1
            return torch.from_numpy(eps[:, (gate.calls - 1) % num].reshape(-1, experts))

        layer.mlp.gate.randn = randn

    def expected(model, theirs):
        return {"logits": model(theirs)[0], **model.loss(theirs)}

    def ours(logits, aux, terms):
        return {
            "logits": logits["diagnosis"],
            "task": terms["diagnosis"],
            "router": sum(aux.values()),
            "total": terms["total"],
        }

    layout, batch = flexmoe_table.layout(method), make_batch(inputs, {"diagnosis": target})
    return Case(method, layout, model, batch, theirs, ours, expected)


# --- FlexCare -----------------------------------------------------------------------------------


def flexcare(seed, size=1.0, *, task="mortality", present: Sequence | None = None, **sizes):
    """One task; a row may have nothing, and of `diag`'s findings any number is known."""
    from tests.rivals.flexcare import MEMBERS, Model

    rng, index = np.random.default_rng([seed, 2]), [t.name for t in CARE].index(task)
    here = rng.random((4, 3)) < 0.6 if present is None else np.array(present, bool)
    here[0, 0] = True  # somebody has something
    rows = len(here)
    spec = DataSpec(
        (
            ModalitySpec("ehr", "vectors", (5, 9)),
            ModalitySpec("cxr", "image", (1, 16, 16, 3)),
            ModalitySpec("note", "vectors", (4, 6)),
        ),
        CARE,
    )
    sizes = {"width": 8, "depth": 2, "num_heads": 2, "mlp": 12, "num_experts": 5} | sizes
    sizes = {"top_k": 2, "dropout": 0.0, "patch": 8} | sizes
    model = draw(Model(features=9, words=6, **sizes), seed, size)
    method = with_experts(ReleasedFlexCare, spec, hidden=sizes["width"], **sizes)
    inputs, theirs = {}, {"present": torch.from_numpy(here), "task": task}
    for m, (name, steps, width) in enumerate((("ehr", 5, 9), ("cxr", 0, 0), ("note", 4, 6))):
        if name == "cxr":
            inputs[name] = image_stream(rng, here[:, m], (1, 16, 16, 3))
            theirs[name] = tensors(inputs[name].values[:, 0].transpose(0, 3, 1, 2))
            continue
        length = np.where(here[:, m], rng.integers(1, steps + 1, rows), 0)
        mask = np.arange(steps) < length[:, None]
        values = rng.standard_normal((rows, steps, width)).astype(np.float32) * mask[..., None]
        inputs[name] = Stream(values, mask, here[:, m], np.zeros(mask.shape, np.float32))
        theirs |= {name: tensors(values), f"{name}_length": torch.from_numpy(length)}
    targets = {t.name: labels(rng, t, rows) for t in CARE}
    targets["diag"].mask[:] = rng.random((rows, 14)) < np.resize([0.1, 0.9, 0.5, 0.3], (rows, 1))
    label = tensors(targets[task].value)
    if task == "diag":
        label = torch.where(torch.from_numpy(targets[task].mask > 0), label, -1.0)
    theirs["label"] = label.long() if task == "los" else label
    ready = np.stack([here[:, list(m)].all(1) for m in MEMBERS], 1).ravel()
    experts = sizes["num_experts"]
    model.moe.randn = lambda shape: torch.from_numpy(noise((rows * 7, experts))[ready])

    def expected(model, theirs):
        return {"logits": model(theirs)[0], **model.loss(theirs)}

    def ours(logits, aux, terms):
        return {
            "logits": logits[task],
            "task": terms[task],
            "covariance": aux["covariance"],
            "balance": 0.01 * (aux["importance"] + aux["load"]),
            "total": terms["total"],
        }

    layout, batch = flexcare_table.layout(method), make_batch(inputs, targets, index)
    return Case(method, layout, model, batch, theirs, ours, expected)


# --- M4oE ---------------------------------------------------------------------------------------


def m4oe(seed, size=1.0, *, present: Sequence | None = None, **sizes):
    """Four views; one that a row lacks is a zero image like any other. A label is missing."""
    from tests.rivals.m4oe import Model

    rng = np.random.default_rng([seed, 3])
    tasks = tuple(
        TaskSpec(n, "multiclass", dim=d) for n, d in (("density", 4), ("risk", 2), ("birads", 3))
    )
    names = ("cc", "mlo", "2dcc", "2dmlo")
    here = rng.random((4, 4)) < 0.7 if present is None else np.array(present, bool)
    rows = len(here)
    spec = DataSpec(tuple(ModalitySpec(n, "image", (1, 8, 8, 3)) for n in names), tasks)
    sizes = {"width": 8, "hidden": 6, "num_heads": 2, "num_experts": 3} | sizes
    sizes = {"modality_experts": 2, "fusion_experts": 2, "vit_depth": 2, "vit_heads": 2} | sizes
    sizes = {"patch": 4, "depth": 2, "fusion_depth": 2} | sizes
    weights = {
        "density": (0.75, 0.875, 1.0, 0.625),
        "risk": (0.125, 0.875),
        "birads": (0.5, 0.625, 1),
    }
    scales = [torch.tensor(w).double() for w in weights.values()]
    model = draw(Model(image=8, class_weights=scales, **sizes), seed, size)
    moe = SoftOptions(
        num_experts=sizes.pop("num_experts"), hidden=sizes.pop("hidden"), inputs="unit"
    )
    method = ReleasedM4oE(
        spec, moe, class_weights=FrozenDict(weights), aux_weights=FrozenDict(information=0.05),
        **sizes,
    )  # fmt: skip
    inputs = {n: image_stream(rng, here[:, m], (1, 8, 8, 3)) for m, n in enumerate(names)}
    targets = {t.name: labels(rng, t, rows) for t in tasks}
    targets["birads"].mask[rows // 2] = 0  # the row then trains no task
    theirs = {
        "images": [tensors(inputs[n].values[:, 0].transpose(0, 3, 1, 2)) for n in names],
        "labels": [
            torch.from_numpy(np.where(t.mask > 0, t.value, -2)).long() for t in targets.values()
        ],
    }

    def expected(model, theirs):
        logits = dict(zip(targets, model(theirs)[0], strict=True))
        losses = model.loss(theirs)
        terms = {f"{n} loss": losses[f"task{t}"] for t, n in enumerate(targets)}
        return logits | terms | {n: losses[n] for n in ("information", "total")}

    def ours(logits, aux, terms):
        losses = {f"{n} loss": terms[n] for n in targets}
        return {**logits, **losses, "information": aux["information"], "total": terms["total"]}

    layout, batch = m4oe_table.layout(method), make_batch(inputs, targets)
    # Of a sum of probabilities times logarithms near 0 almost nothing is left.
    least = FrozenDict(information=0.1)
    return Case(method, layout, model, batch, theirs, ours, expected, least)


# --- M3H ----------------------------------------------------------------------------------------


def m3h(seed, size=1.0, *, features=(5, 3), present: Sequence | None = None):
    """Tables; tasks of three kinds."""
    from tests.rivals.m3h import Model

    rng = np.random.default_rng([seed, 4])
    kinds = (("binary", 1), ("multiclass", 3), ("regression", 1), ("binary", 1))
    tasks = tuple(TaskSpec(f"t{i}", kind, dim=dim) for i, (kind, dim) in enumerate(kinds))
    modalities = tuple(ModalitySpec(f"m{i}", "table", (f,)) for i, f in enumerate(features))
    spec = DataSpec(modalities, tasks)
    fields = {"width": 8, "task_width": 6, "dropout": 0.0}
    model = draw(Model(features=features, tasks=kinds, **fields), seed, size)
    method = ReleasedM3H(spec, **fields)
    entries = [
        stack("cross_task/projection", [f"project.{t}.weight" for t in range(4)], SWAP),
        one("cross_task/task", "task.weight", SWAP),
        *(one(f"cross_task/{n}/kernel", f"{n}.weight", SWAP) for n in ("query", "key", "value")),
        *linears("heads/dim_1", [f"heads.{t}" for t in (0, 2, 3)]),
        *linears("heads/dim_3", ["heads.1"]),
    ]
    for i in range(len(features)):
        for part in ("up", "down"):
            entries += linears(f"encoder/m{i}_{part}", [f"encoders.{i}.{part}"])
    here = rng.random((4, 2)) < 0.7 if present is None else np.array(present, bool)
    here[~here.any(1), 0] = True
    inputs = {f"m{i}": table_stream(rng, here[:, i], f) for i, f in enumerate(features)}
    targets = {t.name: labels(rng, t, len(here)) for t in tasks}
    theirs = {
        "values": [tensors(inputs[f"m{i}"].values) for i in range(len(features))],
        "present": torch.from_numpy(here),
        "labels": [tensors(t.value) for t in targets.values()],
    }
    theirs["labels"][1] = theirs["labels"][1].long()

    def expected(model, theirs):
        return dict(zip(targets, model(theirs), strict=True)) | model.loss(theirs)

    def ours(logits, aux, terms):
        return {**logits, "total": terms["total"]}

    return Case(method, Layout(entries), model, make_batch(inputs, targets), theirs, ours, expected)


# --- FuseMoE ------------------------------------------------------------------------------------

FUSE_SIZES = {"width": 8, "num_heads": 2, "num_queries": 48, "embed_time": 8}
CHANNELS = {"ts": 3, "text": 5, "cxr": 4, "ecg": 3}
NAMES = {"ts": "vitals", "text": "notes", "cxr": "cxr", "ecg": "ecg"}
ROWS, LENGTH, TIMES = 3, 6, 2


def schema(roles):
    """The data of modalities by the release's names."""
    kinds = {"ts": ("series", LENGTH)}
    modalities = [
        ModalitySpec(NAMES[r], kind, (length, CHANNELS[r]))
        for r in roles
        for kind, length in [kinds.get(r, ("vectors", TIMES))]
    ]
    return DataSpec(tuple(modalities), (TaskSpec("death", "binary"),))


def impute(values, observed, times, length, bins=48):
    """The authors' hourly grid of one row: values and flags, with the defects of their loop."""
    grid, flags = np.zeros((2, bins, values.shape[1]), np.float32)
    for row in range(length):
        hour = int(times[row])
        if hour >= bins:
            continue
        for f in range(values.shape[1]):
            if observed[row, f]:
                grid[hour, f], flags[hour, f] = values[row, f], 1
            elif grid[hour - 1, f] != 0:
                grid[hour, f] = grid[hour - 1, f]
    return np.concatenate([grid, flags], 1)


def fuse_batches(roles, seed=0, lacking=1):
    """One batch for m4 and for the rival; row `lacking` has the series alone."""
    rng = np.random.default_rng(seed)
    ours, theirs = {}, {}
    for role in roles:
        f, steps = CHANNELS[role], LENGTH if role == "ts" else TIMES
        missing = np.arange(ROWS) == lacking if role != "ts" else np.zeros(ROWS, bool)
        length = np.where(missing, 0, rng.integers(1, steps + 1, ROWS))
        mask = np.arange(steps) < length[:, None]
        times = (np.sort(rng.uniform(0, 47.9, (ROWS, steps)), 1) * mask).astype(np.float32)
        values = rng.standard_normal((ROWS, steps, f)).astype(np.float32) * mask[..., None]
        ours[NAMES[role]] = stream = Stream(values, mask, ~missing, times)
        if role == "ts":
            observed = (rng.random(values.shape) < 0.6) & mask[..., None]
            values *= observed
            ours[NAMES[role]] = stream.replace(observed=observed)
            reg = np.stack([impute(*x) for x in zip(values, observed, times, length, strict=True)])
            theirs[role] = {"mask": observed.astype(np.float32), "reg": reg}
            theirs[role] |= {"values": values, "times": times.astype(np.float64) / 48}
            continue
        # Their loader: something missing is one zero at time 0 that counts; notes run backwards.
        kept = mask | (missing[:, None] & (np.arange(steps) == 0))
        when = 1 - times.astype(np.float64) / 48 if role == "text" else times
        theirs[role] = {
            "values": values,
            "mask": kept.astype(np.float32),
            "times": when * mask,
            "missing": missing,
        }
    rows = np.arange(ROWS, dtype=np.int32)
    label = rng.integers(0, 2, ROWS)
    target = Target(label[:, None].astype(np.float32), np.ones(ROWS, np.float32))
    batch = Batch(ours, {"death": target}, rows * 0 - 1, np.ones(ROWS, np.float32), rows)
    return batch, tensors(theirs | {"label": label})


def fusemoe(seed, size=1.0, *, roles=("ts", "text", "cxr"), lacking=1, moe=None, **fields):
    """Any fusion, gate and router of the release."""
    from tests.rivals.fusemoe import Model

    fields = FUSE_SIZES | {"depth": 1, "utde": "batch", "dropout": 0.0} | fields
    moe = {
        "num_experts": 8,
        "top_k": 2,
        "hidden": 6,
        "share": "joint",
        "gate": "laplace",
        **(moe or {}),
    }
    theirs = {"router" if name == "share" else name: value for name, value in moe.items()}
    model = Model(channels={r: CHANNELS[r] for r in roles}, **fields, **theirs)
    model = draw(model, seed, size)
    for layer in model.trans_self_cross_ts_txt.layers:
        layer.moe.randn = lambda shape: torch.from_numpy(noise(shape))
    weights = FrozenDict({"importance": 0.0, "load": 0.0})  # computed, never added
    options = MoEOptions(router="noisy_top_k", engine="dense", **moe)
    method = ReleasedFuseMoE(schema(roles), options, aux_weights=weights, **fields)
    batch, theirs = fuse_batches(roles, seed, lacking)

    def expected(model, theirs):
        out, balance = model(theirs)
        losses = model.loss(theirs)
        return {"logits": out[:, 1] - out[:, 0], **losses, "balance": balance}

    def ours(logits, aux, terms):
        return {
            "logits": logits["death"][:, 0],
            "task": terms["death"],
            "total": terms["total"],
            "balance": sum(aux.values()),
        }

    return Case(method, fusemoe_table.layout(method), model, batch, theirs, ours, expected)
