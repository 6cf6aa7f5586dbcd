"""Fabricated predictions: numbers made up by a random generator, no patient anywhere."""

import numpy as np
import pytest

from m4.eval.predictions import LayerRouting, Predictions
from m4.eval.subsets import choose, matrix
from m4.specs import DataSpec, ModalitySpec, TaskSpec

STRENGTH = {"vitals": 1.2, "labs": 0.7, "notes": 0.4, "ecg": 0.0}


def make_spec(modalities=tuple(STRENGTH)):
    return DataSpec(
        modalities=tuple(ModalitySpec(m, "table", (2,)) for m in modalities),
        tasks=(
            TaskSpec("ihm", "binary", labels=("survived", "died")),
            TaskSpec("phe", "multilabel", dim=3, labels=("sepsis", "shock", "renal failure")),
            TaskSpec("unit", "multiclass", dim=3),
            TaskSpec("los", "regression", transform="log1p"),
        ),
    )


def make_predictions(
    rows=400, seed=0, modalities=tuple(STRENGTH), experts=8, patient_offset=0, tasks=None, how=True
):
    """Each kept and present modality adds evidence in proportion to its STRENGTH.

    `how` says which subsets, see `choose`.
    """
    rng = np.random.default_rng(seed)
    spec = make_spec(modalities)
    patient_N = patient_offset + np.sort(rng.integers(0, int(rows * 0.9), rows))
    present_NM = rng.random((rows, len(modalities))) < 0.8
    present_NM[~present_NM.any(axis=1), 0] = True
    subsets = choose(spec.modality_names, present_NM, patient_N, how=how)
    keep_SM = matrix(subsets)
    truth_NM = rng.normal(size=(rows, len(modalities)))
    weight_M = np.array([STRENGTH.get(m, 0.3) for m in modalities])
    risk_N = truth_NM @ weight_M
    known_SNM = keep_SM[:, None, :] & present_NM
    seen_SN = (known_SNM * truth_NM * weight_M).sum(-1) - 1.2

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    label = {
        "ihm": (rng.random(rows) < sigmoid(1.5 * risk_N - 1.2))[:, None],
        "phe": rng.random((rows, 3)) < sigmoid(risk_N[:, None] - np.array([0.5, 1.0, 2.0])),
        "unit": rng.integers(0, 3, (rows, 1)),
        "los": np.exp(1 + 0.4 * risk_N + 0.3 * rng.normal(size=rows))[:, None],
    }
    unit = rng.dirichlet(np.ones(3), size=(len(keep_SM), rows))
    prediction = {
        "ihm": sigmoid(seen_SN)[..., None],
        "phe": sigmoid(seen_SN[..., None] + 1.2 - np.array([0.5, 1.0, 2.0])),
        "unit": 0.6 * unit + 0.4 * np.eye(3)[label["unit"][:, 0]],
        "los": np.exp(1 + 0.4 * (seen_SN + 1.2))[..., None],
    }
    by_row = rng.poisson(
        3.0 * rng.dirichlet(np.ones(experts), len(modalities))[None] * present_NM[:, :, None] * 4
    ).astype(np.float32)
    by_modality = by_row.sum(axis=0, dtype=np.float64)
    routing = {
        f"layer_{i}": LayerRouting(by_modality, by_modality.sum(0), 1.4, 0.02, by_row)
        for i in range(2)
    }
    if tasks is not None:
        prediction = {name: prediction[name] for name in tasks}
    mask = {name: rng.random(np.shape(y)) < 0.95 for name, y in label.items()}
    return (
        spec,
        subsets,
        Predictions(
            subsets=keep_SM,
            uid=np.arange(rows),
            patient=patient_N,
            present=present_NM,
            prediction={name: p.astype(np.float32) for name, p in prediction.items()},
            label={n: np.where(mask[n], np.asarray(y, float), 0.0) for n, y in label.items()},
            label_mask=mask,
            counted=known_SNM.any(-1),
            routing=routing,
        ),
    )


@pytest.fixture(scope="session")
def fabricate():
    return make_predictions
