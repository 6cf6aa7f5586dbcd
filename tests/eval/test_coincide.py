"""Inputs that coincide are predicted once, and every answer is that of the plain loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.eval import coincide, evaluate
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target

M, ROWS = 7, 8
SPEC = DataSpec(
    modalities=tuple(ModalitySpec(f"m{m}", "table", (3,)) for m in range(M)),
    tasks=(TaskSpec("death", "binary"), TaskSpec("stay", "regression")),
)
EVERY = np.array([k for k in itertools.product((True, False), repeat=M) if any(k)])
WEIGHT = np.random.default_rng(5).normal(size=(M * 3, 16)).astype(np.float32)


def batch(start, rows=ROWS, filler=0):
    rng = np.random.default_rng([3, start])
    present_BM = rng.random((rows, M)) < np.linspace(1.0, 0.3, M)
    present_BM[rows - filler :] = False

    def stream(m):
        has_B = present_BM[:, m]
        values_BC = rng.normal(size=(rows, 3)).astype(np.float32) * has_B[:, None]
        return Stream(values_BC, has_B[:, None], has_B, np.repeat(has_B[:, None], 3, axis=1))

    one = Target(np.ones((rows, 1), np.float32), np.ones(rows))
    real_B = np.arange(rows) < rows - filler
    return Batch(
        inputs={f"m{m}": stream(m) for m in range(M)},
        targets={"death": one, "stay": one},
        task=np.full(rows, -1, np.int32),
        weight=real_B.astype(np.float32),
        uid=np.where(real_B, start + np.arange(rows), -1).astype(np.int32),
    )


BATCHES = [batch(0), batch(8), batch(16, filler=3)]


class Predict:
    """A network of two layers that knows who is there; counts its calls.

    With `mixes` every answer is moved by the other rows of its batch.
    """

    def __init__(self, mixes=False):
        self.calls = 0

        @jax.jit
        def run(given, keep_M):
            given = evaluate.mask_modalities(given, keep_M, SPEC)
            x_BMC = jnp.stack([given.inputs[name].values for name in SPEC.modality_names], axis=1)
            h_BD = jnp.tanh(x_BMC.reshape(len(x_BMC), -1) @ WEIGHT)
            y_B = h_BD.sum(-1) + given.present(SPEC) @ jnp.arange(float(M))
            y_B = y_B + y_B.mean() if mixes else y_B
            load = given.present(SPEC).sum(0).astype(jnp.float32)
            answers = {"death": jax.nn.sigmoid(y_B)[:, None], "stay": y_B[:, None]}
            return answers, {"layer_0": {"load": load}}

        self._run = run

    def __call__(self, given, keep_M):
        self.calls += 1
        return self._run(given, keep_M)


def swept(predict, subsets_SM=EVERY, batches=BATCHES):
    pairs = [(b, jax.device_put(b)) for b in batches]
    return evaluate.sweep(predict, pairs, SPEC, subsets_SM, patients=np.arange(24))


def test_all_127_subsets_in_one_sweep_are_the_loop_bit_for_bit():
    once, alone = Predict(), Predict()
    found = swept(once)
    assert len(EVERY) == 127 and found.subsets.shape == (127, M)
    distinct = sum(len({tuple(keep & present) for keep in EVERY}) for present in found.present)
    assert once.calls < distinct / ROWS + 2 * len(BATCHES) + evaluate.WITNESSES
    for s, keep in enumerate(EVERY):
        loop = swept(alone, keep[None])
        assert loop.uid.tobytes() == found.uid.tobytes()
        assert loop.counted[0].tobytes() == found.counted[s].tobytes()
        for task in ("death", "stay"):
            assert loop.prediction[task][0].tobytes() == found.prediction[task][s].tobytes()
    whole = swept(alone, EVERY[:1])
    assert alone.calls == 128 * len(BATCHES)
    assert whole.routing["layer_0"].load.tolist() == found.routing["layer_0"].load.tolist()


def test_where_other_rows_matter_nothing_is_packed():
    once, alone = Predict(mixes=True), Predict(mixes=True)
    found = swept(once)
    assert once.calls >= len(EVERY) * len(BATCHES)
    for s in (0, 1, 60, 126):
        loop = swept(alone, EVERY[[s]])
        assert loop.prediction["stay"][0].tobytes() == found.prediction["stay"][s].tobytes()


def test_where_everybody_has_everything_nothing_is_gained_nor_packed():
    complete = batch(0)
    for stream in complete.inputs.values():
        stream.present[:] = True
    calls = coincide.pack(np.ones((ROWS, M), bool), np.ones(ROWS, bool), EVERY, 0)
    assert len(calls) == len(EVERY)
    predict = Predict()
    swept(predict, batches=[complete])
    assert predict.calls == len(EVERY)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 40])
def test_every_answer_stands_where_its_input_was_asked(width):
    rng = np.random.default_rng(width)
    present_BM = rng.random((5, width)) < 0.5
    real_B = np.array([True, True, False, True, True])
    subsets_SM = np.concatenate([np.ones((1, width), bool), rng.random((30, width)) < 0.5])
    calls = coincide.pack(present_BM, real_B, subsets_SM, 0)
    seen = [present_BM & subsets_SM[s] for s in calls.plain]
    both = zip(calls.row_KB, calls.keep_KBM, strict=True)
    seen += [present_BM[row_B] & keep_BM for row_B, keep_BM in both]
    rows = [np.arange(5)] * len(calls.plain) + [*calls.row_KB]
    seen_XM, row_X = np.concatenate(seen), np.concatenate(rows)
    for s, keep in enumerate(subsets_SM):
        own = calls.place_SB[s]
        assert row_X[own].tolist() == [0, 1, 2, 3, 4]
        assert (seen_XM[own] == present_BM & keep)[real_B].all()
    asked = {(r, *map(bool, present_BM[r] & k)) for k in subsets_SM for r in np.flatnonzero(real_B)}
    assert len(np.unique(calls.place_SB[:, real_B])) == len(asked)
