"""Shapley values, interactions and monotonicity, against their definitions and a known truth."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from m4.data.sets.synthetic import worth
from m4.errors import DataError
from m4.eval import attribution, bootstrap, games, monotone, subsets, table
from m4.eval.predictions import Predictions
from m4.eval.results import compose
from m4.specs import DataSpec, ModalitySpec, TaskSpec

OF_TASKS = ("prediction", "label", "label_mask")


def every(count):
    return np.array([*itertools.product((False, True), repeat=count)], bool)


def by_orders(value, count):
    """Shapley values by all orders of the players."""
    out = np.zeros(count)
    for order in itertools.permutations(range(count)):
        before = frozenset()
        for m in order:
            out[m] += value[before | {m}] - value[before]
            before |= {m}
    return out / math.factorial(count)


def by_sets(value, count):
    """Pairwise Shapley interactions by their definition."""
    out = []
    for a, b in itertools.combinations(range(count), 2):
        rest, total = [m for m in range(count) if m not in (a, b)], 0.0
        for size in range(count - 1):
            for s in map(frozenset, itertools.combinations(rest, size)):
                weight = math.factorial(size) * math.factorial(count - size - 2)
                gain = value[s | {a, b}] - value[s | {a}] - value[s | {b}] + value[s]
                total += weight / math.factorial(count - 1) * gain
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_the_maps_are_the_definitions(count):
    keep_SM = every(count)
    value_S = np.random.default_rng(count).normal(size=len(keep_SM))
    value = {frozenset(np.flatnonzero(k)): v for k, v in zip(keep_SM, value_S, strict=True)}
    found = attribution.shapley_map(keep_SM) @ value_S
    np.testing.assert_allclose(found, by_orders(value, count), atol=1e-12)
    assert abs(found.sum() - (value_S[-1] - value_S[0])) < 1e-12
    together = attribution.interaction_map(keep_SM)
    if count == 1:
        assert together is None
    else:
        np.testing.assert_allclose(together @ value_S, by_sets(value, count), atol=1e-12)


def test_orders_estimate_without_bias_and_sum_to_the_total():
    names = tuple(f"m{i}" for i in range(12))
    chosen = subsets.choose(names, np.ones((20, 12), bool), np.arange(20), how="sample:200")
    keep_SM = np.concatenate([subsets.matrix(chosen), np.zeros((1, 12), bool)])
    assert 150 < len(keep_SM) <= 200 + 2 * 12 + 2
    assert len({*map(tuple, keep_SM)}) == len(keep_SM)
    map_MS = attribution.shapley_map(keep_SM)
    weight_M = np.linspace(-1, 1, 12)
    additive = map_MS @ (keep_SM @ weight_M)
    np.testing.assert_allclose(additive, weight_M, atol=1e-12)
    paired = keep_SM[:, 0] & keep_SM[:, 1]  # worth 1 together: a half each, by antithetic orders
    np.testing.assert_allclose((map_MS @ paired)[:2], 0.5, atol=1e-12)
    assert attribution.interaction_map(keep_SM) is None
    few = subsets.choose(names, np.ones((20, 12), bool), np.arange(20))
    assert attribution.shapley_map(np.concatenate([subsets.matrix(few), keep_SM[-1:]])) is None


@pytest.mark.parametrize("how", ["all", "sample:2000", "sample:64"])
def test_all_is_all_where_there_are_few(how):
    names = tuple("abcdef")
    chosen = subsets.choose(names, np.ones((20, 6), bool), np.arange(20), how=how)
    assert chosen[0].keep == (True,) * 6
    assert {s.keep for s in chosen} == {tuple(k) for k in every(6)} - {(False,) * 6}


SPEC = DataSpec(
    modalities=tuple(ModalitySpec(m, "table", (1,)) for m in worth.MODALITIES),
    tasks=(TaskSpec("ihm48", "binary", labels=("survived", "died")),),
)


def ideal(n, seed, **options):
    """Predictions of an ideal model on the planted cohort, and its subsets."""
    present_NM, died_N, answers = worth.bayes(n=n, seed=seed, **options)
    names = SPEC.modality_names
    chosen = subsets.choose(names, present_NM, np.arange(n), how="all")
    keep_SM = subsets.matrix(chosen)
    return chosen, Predictions(
        subsets=keep_SM,
        uid=np.arange(n),
        patient=np.arange(n),
        present=present_NM,
        prediction={"ihm48": np.stack([answers[s.keep] for s in chosen])[..., None]},
        label={"ihm48": died_N[:, None].astype(float)},
        label_mask={"ihm48": np.ones((n, 1), bool)},
        counted=(keep_SM[:, None] & present_NM).any(-1),
        routing={},
        groups={"half": np.where(np.arange(n) % 2, "odd", "even")},
    )


@pytest.fixture(scope="module")
def truth():
    """Shapley values and interactions on other stays, by other code than the library's."""
    present_NM, died_N, answers = worth.bayes(n=30_000, seed=7)
    del present_NM
    value = {}
    for keep, p_N in answers.items():
        right_N = np.where(died_N, p_N, 1 - p_N)
        value[frozenset(np.flatnonzero(keep))] = np.log(right_N).mean()
    return by_orders(value, 7), by_sets(value, 7)


@pytest.fixture(scope="module")
def planted():
    chosen, predictions = ideal(20_000, seed=3)
    draws = bootstrap.resample(predictions.patient, draws=200)
    return games.play(predictions, SPEC, SPEC.tasks[0], draws, min_patients=10)


def test_the_planted_cohort_gives_its_truth_back(planted, truth):
    true_M, true_K = truth
    found = attribution.describe(planted)
    worth_M = np.array([row["shapley"]["value"] for row in found["modalities"]])
    assert spearmanr(worth_M, true_M).statistic == 1.0
    assert abs(worth_M.sum() - found["total"]["value"]) < 1e-5  # six digits are written
    alone = sum(row["alone"]["value"] for row in found["modalities"])
    together = {tuple(row["pair"]): row["interaction"] for row in found["pairs"]}
    total = alone + sum(e["value"] for e in together.values())
    assert abs(total - found["total"]["value"]) < 1e-5
    assert together["notes", "ecg"]["low"] > 0 > together["labs", "medications"]["high"]
    assert together["notes", "ecg"]["p_holm"] < 0.01
    signs = np.sign([e["value"] for e in together.values()])
    sure = np.abs(true_K) > 1e-3
    assert (signs[sure] == np.sign(true_K)[sure]).all()
    assert {row["category"] for row in found["groups"]["half"]} == {"odd", "even"}
    assert found["primary"]["modalities"][0]["shapley"]["value"] > 0.1


def test_knowing_more_does_an_ideal_model_no_harm_but_a_misled_one(planted):
    found = monotone.describe(planted)
    rows = {row["modality"]: row for row in found["modalities"]}
    assert rows["vitals"]["last"]["value"] > 0.1  # bad luck, which a perfect model has too
    for row in rows.values():
        assert abs(row["excess"]["value"]) < 0.02
        assert row["excess"]["low"] <= 0.005
        assert row["gain"]["value"] > -1e-3


def test_values_stand_for_every_row_and_their_intervals_hold_the_truth(truth):
    """Of 100 sets of 400 stays; 0.95 is meant, 0.022 is chance."""
    true_M, _ = truth
    held = []
    for seed in range(100):
        _, predictions = ideal(400, seed=1000 + seed)
        draws = bootstrap.resample(predictions.patient, draws=200, seed=seed)
        game = games.play(predictions, SPEC, SPEC.tasks[0], draws, min_patients=10)
        value_Mn = attribution.shapley_map(game.keep_SM) @ game.value_Sn
        assert np.abs(value_Mn.sum(0) - (game.value_Sn[0] - game.value_Sn[-1])).max() < 1e-12
        held.append(
            [
                e["low"] <= true <= e["high"]
                for e, true in zip(game.means(value_Mn), true_M, strict=True)
            ]
        )
    shares = np.mean(held, axis=0)
    print("shares of intervals that hold the truth, by modality", shares)
    shares = shares[np.abs(true_M) > 1e-6]
    assert (shares > 0.95 - 4 * 0.022).all() and 0.91 < shares.mean() < 0.98


def test_the_document_and_its_page(fabricate, tmp_path):
    spec, chosen, predictions = fabricate(patient_offset=880_000_000)
    document = compose(predictions, spec, chosen, split="test", draws=50)
    assert "88000" not in json.dumps(document)
    assert {*document["attribution"]} == {"ihm", "phe", "unit", "los"}
    best = max(document["attribution"]["ihm"]["modalities"], key=lambda r: r["shapley"]["value"])
    assert best["modality"] == "vitals"


def test_the_table_is_read_back_as_it_was(fabricate, tmp_path):
    spec, _, predictions = fabricate(rows=60)
    groups = {"sex": np.resize(["f", "m", ""], 60)}
    fold = np.arange(60) % 3
    predictions = dataclasses.replace(predictions, groups=groups, fold=fold, routing={})
    path = tmp_path / "table.parquet"
    pq.write_table(table.make(predictions, spec, predictions.patient), path)
    worth_of = table.worth(predictions, spec, predictions.patient)
    assert {"row", "patient", "ihm/vitals", "los/ecg"} <= {*worth_of.column_names}
    assert worth_of["ihm/vitals"].null_count == (~predictions.label_mask["ihm"]).sum()
    back = table.read(path, spec)
    for field in dataclasses.fields(Predictions):
        same(getattr(predictions, field.name), getattr(back, field.name))
    with pytest.raises(DataError, match="is of other modalities than"):
        table.read(path, SPEC)
    (tmp_path / "none.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="is no subset table"):
        table.read(tmp_path / "none.parquet", spec)


def test_few_random_orders_have_no_interval(fabricate):
    spec, chosen, predictions = fabricate(rows=100, modalities=tuple("abcdefg"), tasks=["ihm"])
    passed = subsets.every(7, 40)
    keep_SM = np.array(passed)
    some = predictions.prediction["ihm"][:1]
    predictions = dataclasses.replace(
        predictions,
        subsets=keep_SM,
        counted=np.ones((len(keep_SM), 100), bool),
        prediction={"ihm": np.repeat(some, len(keep_SM), axis=0)},
    )
    draws = bootstrap.resample(predictions.patient, draws=20)
    game = games.play(predictions, spec, spec.tasks[0], draws, min_patients=10)
    found = attribution.describe(game)
    assert found["orders"] < 20 and not found["exact"]
    for row in found["modalities"]:
        for e in (row["shapley"], row["if_present"]):
            assert e["value"] is not None and e["low"] is None and "p" not in e


@pytest.mark.parametrize("name", ["row", "patient", "subset", "counted", "fold"])
def test_a_task_may_be_called_as_a_column_of_the_table(fabricate, tmp_path, name):
    _, _, predictions = fabricate(rows=30)
    spec = DataSpec(fabricate(rows=30)[0].modalities, (TaskSpec(name, "binary"),))
    own = {key: {name: getattr(predictions, key)["ihm"]} for key in OF_TASKS}
    predictions = dataclasses.replace(predictions, routing={}, fold=np.arange(30) % 3, **own)
    path = tmp_path / "table.parquet"
    pq.write_table(table.make(predictions, spec, predictions.patient), path)
    back = table.read(path, spec)
    for field in dataclasses.fields(Predictions):
        same(getattr(predictions, field.name), getattr(back, field.name))


def same(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)
