"""A small method and a small data set, so that the spine is tested without the real ones."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from m4 import task_losses
from m4.nn.layers import Dropout
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, MoeAux, Outputs, Stream, Target

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (6, 3)),
        ModalitySpec("static", "table", (4,)),
    ),
    tasks=(TaskSpec("death", "binary"), TaskSpec("los", "regression", loc=2.0, scale=3.0)),
)


class Toy(nn.Module):
    """Masked means of linearly encoded streams, dropout, one linear head per task."""

    data: DataSpec
    width: int = 8
    dropout: float = 0.1
    num_experts: int = 4
    top_k: int = 2
    flavour: str = "plain"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        if self.flavour not in ("plain", "fancy"):
            raise ValueError(f"flavour={self.flavour!r} is not plain or fancy")
        pooled = []
        for name in self.data.modality_names:
            stream = batch.inputs[name]
            x = nn.Dense(self.width, name=f"encode_{name}")(stream.values)
            if x.ndim == 3:
                x = jnp.einsum("btd,bt->bd", x, stream.mask) / 6.0
            pooled.append(x * stream.present[:, None])
        h = nn.LayerNorm(name="norm")(jnp.tanh(sum(pooled)))
        h = Dropout(self.dropout, deterministic=not train)(h)
        logits = {
            task.name: nn.Dense(task.dim, name=f"head_{task.name}")(h) for task in self.data.tasks
        }
        load = jnp.full((self.num_experts,), 1.0 / self.num_experts)
        aux = MoeAux(losses={}, stats={"load": load, "entropy": jnp.zeros(())})
        return Outputs(logits=logits, aux_losses={}, moe={"layer_0": aux})

    def loss(self, out, batch, step):
        terms = task_losses.task_losses(self.data, out.logits, batch)
        return task_losses.total(self.data, terms, out.aux_losses, {}), terms


def config(
    data: str, file: object, select: str, *, choose: str = "best", bootstrap: int = 5
) -> str:
    """A configuration file: two steps of the toy on a data set that a definition describes."""
    return f"""
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name={data!r}, options=dict(file={str(file)!r})),
        method=dict(name='tests.toy:Toy', width=4),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=8, log_every=1, eval_every=2, save_every=2,
                   select={select!r}, choose={choose!r}),
        eval=dict(batch_size=16, bootstrap={bootstrap}, subsets=False, baselines=False),
    ))
"""


def batch(step: int, *, rows: int = 16, spec: DataSpec = SPEC, seed: int = 0) -> Batch:
    """Batch of NumPy arrays, a pure function of (seed, step); the labels can be learned."""
    rng = np.random.default_rng((seed, step))
    present = {m: rng.random(rows) < 0.8 for m in spec.modality_names}
    present["static"] |= ~present["vitals"]
    values = rng.normal(size=(rows, 6, 3)).astype(np.float32)
    table = rng.normal(size=(rows, 4)).astype(np.float32)
    mask = (rng.random((rows, 6)) < 0.9) & present["vitals"][:, None]
    risk = 2.0 * table[:, 0] * present["static"] + values.mean((1, 2)) * present["vitals"]
    inputs = {
        "vitals": Stream(
            values=values * present["vitals"][:, None, None],
            mask=mask,
            present=present["vitals"],
            times=np.tile(np.arange(6, dtype=np.float32), (rows, 1)),
            observed=np.repeat(mask[..., None], 3, axis=-1),
        ),
        "static": Stream(
            values=table * present["static"][:, None],
            mask=present["static"][:, None],
            present=present["static"],
            observed=np.repeat(present["static"][:, None], 4, axis=-1),
        ),
    }
    targets = {
        "death": Target((risk > 0).astype(np.float32)[:, None], np.ones(rows, np.float32)),
        "los": Target((2 + risk)[:, None].astype(np.float32), np.ones(rows, np.float32)),
    }
    return Batch(
        inputs=inputs,
        targets=targets,
        task=np.full(rows, -1, np.int32),
        weight=np.ones(rows, np.float32),
        uid=np.arange(rows, dtype=np.int32),
    )


def batches(start: int = 0, **kwargs):
    """Endless stream from step `start` on."""
    while True:
        yield batch(start, **kwargs)
        start += 1
