"""A whole training step of m4: the worker process of `tests.timing.method`."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from m4.methods.flexcare.released import ReleasedFlexCare
from m4.methods.flexmoe.released import ReleasedFlexMoE
from m4.methods.fusemoe.released import ReleasedFuseMoE
from m4.methods.m3h.released import ReleasedM3H
from m4.methods.m4oe.released import ReleasedM4oE
from m4.moe.options import SoftOptions
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.train import optim
from m4.train import step as steps
from tests.timing.fusemoe import random_batch
from tests.timing.worker_process import serve

# The tasks that FlexCare's release trains, with its weights.
FLEXCARE_TASKS = (
    TaskSpec("mortality", "binary", weight=0.2),
    TaskSpec("decomp", "binary", weight=0.2),
    TaskSpec("ph", "multilabel", dim=25),
    TaskSpec("los", "multiclass", dim=10, weight=0.5),
    TaskSpec("readm", "binary", weight=0.2),
    TaskSpec("diag", "multilabel", dim=14, weight=0.2),
)


def setup(case):
    """One variant, 'm4'; facts: parameters, shapes, versions."""
    method, batch = {
        "fusemoe": fusemoe, "flexmoe": flexmoe, "flexcare": flexcare, "m3h": m3h, "m4oe": m4oe,
    }[case["name"]](case)  # fmt: skip
    schedule = optim.make_schedule(1e-4, steps=1000, schedule="constant")
    tx = optim.make_optimiser("adamw", schedule, weight_decay=0.01, clip_norm=1.0)
    step = steps.make_step(method, tx, seed=0)
    shapes = jax.eval_shape(lambda: nn.unbox(steps.init_params(method, batch, seed=0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.1 * rng.random(x.shape, np.float32) - 0.05), shapes
    )
    init = jax.jit(lambda params: steps.init_state(params, tx, ema=0.0), donate_argnums=0)
    state = init(params)
    del params
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step.zeros, state, batch)
    )
    apply = jax.jit(step.apply, donate_argnums=0).lower(state, zeros, batch).compile()
    held = [state]
    del state

    def run():
        state, totals = apply(held.pop(), zeros, batch)  # donated: nothing else may hold it
        held.append(state)
        jax.block_until_ready((held, totals))
        return float(totals.means["loss"].total)

    losses = [run() for _ in range(2)]
    assert np.isfinite(losses).all(), losses
    inputs = {name: list(s.values.shape) for name, s in batch.inputs.items()}
    count = sum(x.size for x in jax.tree.leaves(shapes))
    facts = {"params": count, "inputs": inputs, "version": f"jax {jax.__version__}"}
    return {"m4": run}, facts


def fusemoe(case):
    kinds = {"ts": "series"}
    names = {"text": "notes"}
    spec = DataSpec(
        tuple(
            ModalitySpec(names.get(r, r), kinds.get(r, "vectors"), (case["lengths"][r], f))
            for r, f in case["channels"].items()
        ),
        (TaskSpec("ihm", "binary"),),
    )
    weights = FrozenDict({"importance": 0.0, "load": 0.0})  # as released: computed and dropped
    sizes = dict(case["sizes"])
    share = sizes.pop("router")  # the authors' name of it
    method = with_experts(ReleasedFuseMoE, spec, share=share, aux_weights=weights, **sizes)
    return method, random_batch(spec, case["rows"])


def flexmoe(case):
    spec = DataSpec(
        tuple(ModalitySpec(n, "table", (f,)) for n, f in case["features"].items()),
        (TaskSpec("diagnosis", "multiclass", dim=3),),
    )
    batch = random_batch(spec, case["rows"])
    for m, stream in enumerate(batch.inputs.values()):
        stream.present[:] = present(case)[:, m]
        stream.mask[:] &= stream.present[:, None]
        stream.observed[:] = stream.present[:, None]
    return with_experts(ReleasedFlexMoE, spec, **case["sizes"]), batch


def with_experts(cls, spec, **sizes):
    """`cls(spec, ...)`, with the sizes of experts where they belong."""
    names = ("num_experts", "top_k", "hidden", "gate", "share")
    experts = {n: sizes.pop(n) for n in names if n in sizes}
    return cls(spec, dataclasses.replace(cls.moe, **experts), **sizes)


def present(case):
    """Which modalities the rows have; everybody has one."""
    rng = np.random.default_rng(1)
    here = rng.random((case["rows"], len(case["features"]))) < case["keep"]
    here[np.arange(len(here)), np.arange(len(here)) % here.shape[1]] = True
    return here


def flexcare(case):
    spec = DataSpec(
        (
            ModalitySpec("ehr", "vectors", (case["hours"], 76)),
            ModalitySpec("cxr", "image", (1, case["pixels"], case["pixels"], 3)),
            ModalitySpec("note", "vectors", (case["words"], 768)),
        ),
        FLEXCARE_TASKS,
    )
    batch = random_batch(spec, case["rows"])
    hidden = case["sizes"]["width"]
    method = with_experts(ReleasedFlexCare, spec, hidden=hidden, **case["sizes"])
    return method, batch.replace(task=np.zeros_like(batch.task))


def m3h(case):
    spec = DataSpec(
        tuple(ModalitySpec(f"m{i}", "table", (f,)) for i, f in enumerate(case["features"])),
        tuple(TaskSpec(f"t{i}", kind, dim=dim) for i, (kind, dim) in enumerate(case["tasks"])),
    )
    return ReleasedM3H(spec, **case["sizes"]), random_batch(spec, case["rows"])


def m4oe(case):
    image = (1, case["pixels"], case["pixels"], 3)
    names = ("density", "risk", "birads")
    spec = DataSpec(
        tuple(ModalitySpec(name, "image", image) for name in ("cc", "mlo", "2dcc", "2dmlo")),
        tuple(
            TaskSpec(n, "multiclass", dim=d) for n, d in zip(names, case["classes"], strict=True)
        ),
    )
    sizes = dict(case["sizes"])
    moe = SoftOptions(
        num_experts=sizes.pop("num_experts"), hidden=sizes.pop("hidden"), inputs="unit"
    )
    method = ReleasedM4oE(spec, moe, dropout=0.0, **sizes)
    return method, random_batch(spec, case["rows"])


if __name__ == "__main__":
    serve(setup)
