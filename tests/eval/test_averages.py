"""Averages of predictions by hand; what is not of the same rows is refused."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax

from m4.errors import CheckpointError
from m4.eval import averages
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, ModalitySpec, TaskSpec

SPEC = DataSpec(
    (ModalitySpec("static", "table", (2,)),),
    (
        TaskSpec("death", "binary"),
        TaskSpec("codes", "multilabel", 3),
        TaskSpec("unit", "multiclass", 4),
        TaskSpec("los", "regression", transform="log1p", loc=1.0, scale=2.0),
        TaskSpec("ph", "regression"),
        TaskSpec("time", "survival", 3, labels=("1", "2", "3")),
        TaskSpec("map", "segmentation"),
    ),
)
K, N = 3, 5


def members():
    """Logits of K members, and what they predict."""
    rng = np.random.default_rng(0)
    z = {t.name: rng.normal(size=(K, 1, N, t.dim)) * 2 for t in SPEC.tasks}
    z["time"] = np.sort(z["time"], axis=-1)
    p = {name: expit(z[name]) for name in ("death", "codes", "time", "map")}
    p |= {"unit": softmax(z["unit"], -1), "los": np.expm1(z["los"]), "ph": z["ph"]}
    each = [{n: v[k].astype(np.float32) for n, v in p.items()} for k in range(K)]
    label = {t.name: np.zeros((N, t.dim)) for t in SPEC.tasks}
    own = {
        "subsets": np.ones((1, 1), bool),
        "uid": np.arange(N),
        "patient": np.arange(N),
        "present": np.ones((N, 1), bool),
        "label": label,
        "label_mask": {name: np.ones(v.shape, bool) for name, v in label.items()},
        "counted": np.ones((1, N), bool),
        "routing": {"layer": None},
    }
    return z, [Predictions(prediction=prediction, **own) for prediction in each]


def test_averages_by_hand():
    z, found = members()
    mean = averages.mean(found, SPEC)
    wanted = {name: expit(z[name].mean(0)) for name in ("death", "codes", "time")}
    wanted["unit"] = softmax(log_softmax(z["unit"], -1).mean(0), -1)
    wanted |= {"los": np.expm1(z["los"].mean(0)), "ph": z["ph"].mean(0)}
    assert mean.prediction.keys() == wanted.keys() == mean.label.keys()  # no map
    for name, value in wanted.items():
        np.testing.assert_allclose(mean.prediction[name], value, rtol=2e-6, atol=1e-6)
    assert (np.diff(mean.prediction["time"], axis=-1) > 0).all()  # risks go up with time
    assert mean.routing == {}


def test_of_one_it_is_itself_and_order_does_not_matter():
    _, found = members()
    assert averages.mean(found[:1], SPEC) is found[0]
    a, b = averages.mean(found, SPEC), averages.mean(found[::-1], SPEC)
    for name in a.prediction:
        np.testing.assert_allclose(a.prediction[name], b.prediction[name], rtol=1e-6)


def test_certainty_is_finite():
    two = TaskSpec("x", "multiclass", 2)
    for task, value in ((TaskSpec("x", "binary"), [0.0, 1.0]), (two, [[0.0, 1.0], [1.0, 0.0]])):
        mean = averages.mean_of(task, np.array(value).reshape(2, 1, -1))
        np.testing.assert_allclose(mean, 0.5, atol=1e-6)
    one = averages.mean_of(TaskSpec("x", "binary"), np.array([0.0, 0.5]).reshape(2, 1))
    np.testing.assert_allclose(one, expit(logit(1e-7) / 2), rtol=1e-4)
    los = TaskSpec("x", "regression", transform="log1p")
    assert np.isfinite(averages.mean_of(los, np.array([[-1.0], [3.0]]))).all()


@pytest.mark.parametrize("field", ["uid", "patient", "present", "label", "label_mask", "counted"])
def test_other_rows_are_refused(field):
    _, found = members()
    value = getattr(found[1], field)
    if isinstance(value, dict):
        changed = value | {"death": 1 - value["death"]}
    else:
        changed = 1 - value if value.dtype == bool else value + 1
    other = dataclasses.replace(found[1], **{field: changed})
    with pytest.raises(CheckpointError, match="predict different rows"):
        averages.mean([found[0], other], SPEC)


def test_beside_are_all_rows():
    _, found = members()
    both = averages.beside(found[:2])
    assert both.uid.tolist() == [*range(2 * N)]
    np.testing.assert_array_equal(both.prediction["ph"][:, N:], found[1].prediction["ph"])
