import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.errors import DivergedError
from m4.eval.evaluate import mask_modalities, sweep
from m4.eval.results import compose, summary, thresholds
from m4.eval.subsets import choose, matrix
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target

SPEC = DataSpec(
    modalities=(ModalitySpec("a", "table", (2,)), ModalitySpec("b", "series", (3, 1))),
    tasks=(
        TaskSpec("ihm", "binary"),
        TaskSpec("phe", "multilabel", dim=2),
        TaskSpec("los", "regression", needs=("b",)),
    ),
)
SUBSETS = np.array([[True, True], [True, False], [False, True]])


def make_batch(uid, weight=None, seed=0, task=-1):
    rng, rows = np.random.default_rng([seed, *uid]), len(uid)
    has_a, has_b = np.arange(rows) % 3 != 1, np.arange(rows) % 3 != 2
    mask_b = np.repeat(has_b[:, None], 3, axis=1)
    values_b = rng.normal(size=(rows, 3, 1)).astype(np.float32) * mask_b[:, :, None]
    return Batch(
        inputs={
            "a": Stream(
                values=rng.normal(size=(rows, 2)).astype(np.float32) * has_a[:, None],
                mask=has_a[:, None],
                present=has_a,
                observed=np.repeat(has_a[:, None], 2, axis=1),
            ),
            "b": Stream(values_b, mask_b, has_b, np.ones((rows, 3), np.float32) * mask_b),
        },
        targets={
            "ihm": Target((np.arange(rows) % 2).astype(np.float32)[:, None], np.ones(rows)),
            "phe": Target(np.ones((rows, 2), np.float32), np.tile([1.0, 0.0], (rows, 1))),
            "los": Target(np.full((rows, 1), np.nan, np.float32), np.zeros(rows)),
        },
        task=np.full(rows, task, np.int32),
        weight=np.ones(rows, np.float32) if weight is None else np.array(weight, np.float32),
        uid=np.array(uid, np.int32),
    )


def make_predict(traces=None):
    """Sums of what is visible; two experts, one per modality."""

    @jax.jit
    def predict(batch, keep_M):
        if traces is not None:
            traces.append(1)
        batch = mask_modalities(batch, keep_M, SPEC)
        a, b = batch.inputs["a"].values.sum(-1), batch.inputs["b"].values.sum((1, 2))
        p = jax.nn.sigmoid(a + b)[:, None]
        by_row = jnp.eye(2)[None] * batch.present(SPEC)[:, :, None]
        stats = {"by_row": by_row, "entropy": batch.weight.mean(), "dropped": jnp.float32(0)}
        return {"ihm": p, "phe": jnp.tile(p, 2), "los": p}, {"layer_0": stats}

    return predict


def swept(predict, batches, *args, **named):
    return sweep(predict, [(b, jax.device_put(b)) for b in batches], *args, **named)


def test_masking_everything_kept_changes_no_bit():
    batch = make_batch(range(6))
    masked = mask_modalities(batch, np.array([True, True]), SPEC)
    for before, after in zip(jax.tree.leaves(batch), jax.tree.leaves(masked), strict=True):
        assert np.array_equal(before, after) or np.isnan(before).all()


def test_masked_modality_is_all_zero_and_empty_rows_lose_their_weight():
    masked = mask_modalities(make_batch(range(6)), np.array([True, False]), SPEC)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(masked.inputs["b"]))
    assert masked.weight.tolist() == [1, 0, 1, 1, 0, 1]  # rows 1 and 4 had only b


def test_masking_stops_garbage():
    batch = make_batch(range(3))
    batch.inputs["b"].values[:] = np.nan
    masked = mask_modalities(batch, np.array([True, False]), SPEC)
    assert np.isfinite(masked.inputs["b"].values).all()


def test_sweep_equals_one_row_at_a_time_and_compiles_once():
    traces = []
    batches = [make_batch(range(0, 4)), make_batch(range(4, 8), weight=[1, 1, 1, 0])]
    patients = np.array([5, 5, 6, 7, 8, 9, 9, 10])
    out = swept(make_predict(traces), batches, SPEC, SUBSETS, patients=patients)
    assert len(traces) == 1
    assert out.uid.tolist() == list(range(7)) and out.patient.tolist() == [5, 5, 6, 7, 8, 9, 9]
    for s, (keep_a, keep_b) in enumerate(SUBSETS):
        for n in range(7):
            batch, row = batches[n // 4], n % 4
            a, b = batch.inputs["a"], batch.inputs["b"]
            visible = keep_a * a.values[row].sum() + keep_b * b.values[row].sum()
            expected = 1 / (1 + np.exp(-visible))
            np.testing.assert_allclose(out.prediction["ihm"][s, n, 0], expected, rtol=1e-5)
            something = (keep_a and a.present[row]) or (keep_b and b.present[row])
            assert out.counted[s, n] == something
    layer = out.routing["layer_0"]
    assert layer.by_modality.tolist() == [[5, 0], [0, 5]]  # padding row 7 not counted
    assert layer.by_row.shape == (7, 2, 2) and layer.load.tolist() == [5, 5]


def test_labels_keep_their_masks_and_needs():
    out = swept(make_predict(), [make_batch(range(6))], SPEC, SUBSETS, patients=np.arange(6))
    assert out.label_mask["phe"].tolist() == [[True, False]] * 6
    assert out.label["los"].tolist() == [[0.0]] * 6 and not out.label_mask["los"].any()
    out.label_mask["los"][:] = True
    los = SPEC.task("los")
    assert out.scored(SPEC, los, 0)[:, 0].tolist() == [True, True, False] * 2  # b is there
    assert not out.scored(SPEC, los, 1).any()  # b is masked
    other = swept(
        make_predict(), [make_batch(range(6), task=1)], SPEC, SUBSETS, patients=np.arange(6)
    )
    assert other.label_mask["phe"].any() and not other.label_mask["ihm"].any()


def test_memory_of_routing_is_bounded(monkeypatch):
    monkeypatch.setattr("m4.eval.evaluate.MAX_ROUTING_CELLS", 4 * 6)  # M x E = 4: six rows
    batches = [make_batch(range(i, i + 4)) for i in (0, 4, 8)]
    out = swept(make_predict(), batches, SPEC, SUBSETS, patients=np.arange(12))
    layer = out.routing["layer_0"]
    assert len(layer.by_row) == 6 and layer.by_modality.sum() == sum(
        b.inputs[m].present.sum() for b in batches for m in "ab"
    )


def test_non_finite_predictions_are_refused():
    def predict(batch, keep_M):
        tasks, layers = make_predict()(batch, keep_M)
        return {**tasks, "ihm": tasks["ihm"].at[2].set(jnp.nan)}, layers

    with pytest.raises(DivergedError, match=r"task ihm: \d of \d+ predictions are not finite"):
        swept(predict, [make_batch(range(4))], SPEC, SUBSETS, patients=np.arange(4))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "nothing to evaluate"),
        ([make_batch(range(3), weight=[0, 0, 0])], "every row has weight 0"),
        ([make_batch([0, 1, 2]), make_batch([2, 3, 4])], "1 rows come more than once"),
    ],
)
def test_impossible_sweeps_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        swept(make_predict(), batches, SPEC, SUBSETS, patients=np.arange(5))


def test_from_batches_to_results():
    batches = [make_batch(range(i, i + 20), seed=i) for i in (0, 20)]
    present = np.concatenate([np.asarray(b.present(SPEC)) for b in batches])
    subsets = choose(SPEC.modality_names, present, np.arange(40))
    out = swept(make_predict(), batches, SPEC, matrix(subsets), patients=np.arange(40))
    results = compose(out, SPEC, subsets, split="test", draws=50, thresholds=thresholds(out, SPEC))
    values = summary(out, SPEC)
    scores = {(s["task"], s["subset"]): s["metrics"] for s in results["scores"]}
    assert scores["ihm", "full"]["auroc"]["value"] == pytest.approx(values["ihm/auroc"], rel=1e-5)
    assert scores["los", "full"]["mae"]["value"] is None
    assert len(results["scores"]) == 3 * 3
