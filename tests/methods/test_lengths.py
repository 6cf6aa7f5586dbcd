"""What a batch is padded to changes nothing: its loss and gradients in a bucket are those in full.

Dropout is off: masks over positions are drawn for the length of the batch.
"""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.config import code
from m4.methods.flexcare.tokens import TokenEncoder
from m4.methods.flexmoe import patches
from m4.methods.m3h.haim import HaimVectors
from m4.nn.encoders.modalities import SummaryTokens, gather
from m4.nn.encoders.query_tokens import QueryTokens
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (12, 3)),
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("labs", "series", (7, 2)),
        ModalitySpec("notes", "vectors", (6, 5)),
        ModalitySpec("icd", "codes", (9,), dtype="int32", vocab=7),
    ),
    tasks=(TaskSpec("death", "binary"), TaskSpec("stay", "regression")),
)
SERIES = DataSpec((SPEC.modality("vitals"), SPEC.modality("labs")), SPEC.tasks, hours=5.0)


def padded(batch, spec):
    """The batch with every modality at its full length."""

    def pad(x, m):
        if x is None or x.ndim < 2 or m.kind == "table":
            return x
        return np.pad(x, ((0, 0), (0, m.length - x.shape[1]), *((0, 0),) * (x.ndim - 2)))

    def stream(m):
        found = batch.inputs[m.name]
        parts = {part: pad(getattr(found, part), m) for part in ("values", "mask")}
        parts |= {part: pad(getattr(found, part), m) for part in ("times", "observed")}
        return found.replace(**parts)

    return batch.replace(inputs={m.name: stream(m) for m in spec.modalities})


def both(spec, length):
    """Rows of at most `length` positions: in their bucket, and padded in full."""
    batch = properties.random_batch(spec.cut(length), rows=8)
    return batch, padded(batch, spec)


class Encoders(nn.Module):
    """What reads ragged modalities, by its parts that differ."""

    @nn.compact
    def __call__(self, batch):
        streams = gather(SPEC, batch)
        haim = HaimVectors(SPEC, 4, name="haim")(batch, train=False)
        summary = SummaryTokens(SPEC, 4, name="summary")(streams, train=False)
        grid = QueryTokens(4, 2, 3, 4, name="grid")(streams, train=False)
        vitals = TokenEncoder(SPEC.modality("vitals"), 4, 3.0, name="vitals")
        bags = [patches.flatten(m, batch.inputs[m.name], hours=48.0) for m in SPEC.modalities]
        return haim, summary, grid, vitals(batch.inputs["vitals"]).x, bags


def test_what_encoders_say_does_not_depend_on_the_padding():
    cut, whole = both(SPEC, 5)
    params = properties.random_like(jax.eval_shape(Encoders().init, jax.random.key(0), whole))
    encode = jax.jit(Encoders().apply)
    properties.tree_close(encode(params, cut), encode(params, whole))


# Learned positions are as many as a batch has, as in the release; a run refuses them buckets.
ONE_LENGTH = {("flexcare", "paper"), ("flexcare", "released")}


@pytest.mark.slow
@pytest.mark.parametrize("file", properties.method_files(), ids="-".join)
def test_loss_and_gradients_do_not_depend_on_the_padding(file):
    cls = code.method_class(*file)
    losses = {"aux_weights": cls.aux_weights} if hasattr(cls, "aux_weights") else {}
    method = properties.first_small(cls, SPEC, SERIES, dropout=0.0, **losses)
    params = properties.random_params(method)
    rngs = {"dropout": jax.random.key(1), "gate": jax.random.key(2)}

    @jax.jit
    def gradient(batch):
        def loss(params):
            out = method.apply({"params": params}, batch, train=True, rngs=rngs)
            return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

        return jax.value_and_grad(loss)(params)

    if file in ONE_LENGTH:
        with pytest.raises(flax.errors.ScopeParamShapeError):
            gradient(both(method.data, 5)[0])
        return
    for length in (5, 1):
        cut, whole = both(method.data, length)
        (loss, grads), (whole_loss, whole_grads) = gradient(cut), gradient(whole)
        np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
        largest = max(np.abs(g).max() for g in jax.tree.leaves(whole_grads))
        assert largest > 0
        properties.tree_close(grads, whole_grads, rtol=0, atol=1e-6 * largest)
