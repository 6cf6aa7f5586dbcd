"""Shapley values, interactions and monotonicity, against their definitions and a known truth."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom, spearmanr, t

from m4.data.sets.synthetic import worth
from m4.errors import DataError
from m4.eval import attribution, bootstrap, games, monotone, subsets, table
from m4.eval.predictions import Predictions
from m4.eval.results import compose
from m4.run.meds_predictions import write_private
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


def least(sets, tried):
    """Intervals of `sets` that must hold the truth, were each to hold it with 0.95.

    Binomial, so that one of `tried` shares falls below by chance once in a thousand times.
    """
    return binom.ppf(0.001 / tried, sets, 0.95)


def test_values_stand_for_every_row_and_their_intervals_hold_the_truth(truth):
    """Of 100 sets of 400 stays, of one kind of cohort; `least` finds 0.80, hardly 0.90."""
    true_M, _ = truth
    held, sets = [], 100
    for seed in range(sets):
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
    held_M = np.sum(held, axis=0)[np.abs(true_M) > 1e-6]
    print(
        "shares of intervals that hold the truth, by modality", held_M / sets, held_M.mean() / sets
    )
    assert (held_M >= least(sets, len(held_M))).all()


def sampled_game(rows, seed, num=12, budget=340):
    """A game of triples, which no pair of orders tells exactly, and its Shapley values.

    Row n gets c[n, t] from every triple t that is there as a whole; each member's share is a third.
    """
    rng = np.random.default_rng(seed)
    shuffled = np.random.default_rng(4).permuted(np.tile(np.arange(num), (30, 1)), axis=1)
    triples = [tuple(three) for three in shuffled[:, :3]]
    mean_T = np.random.default_rng(5).normal(size=len(triples))
    worth_nT = mean_T + 0.5 * rng.normal(size=(rows, len(triples)))
    names = tuple(f"m{m}" for m in range(num))
    keep_SM = np.array(subsets.every(num, budget, seed))
    keep_SM = np.concatenate([keep_SM, np.zeros((1, num), bool)])
    whole_ST = np.stack([keep_SM[:, list(three)].all(axis=1) for three in triples], axis=1)
    spec = DataSpec(tuple(ModalitySpec(m, "table", (1,)) for m in names), SPEC.tasks)
    nothing = np.zeros((len(keep_SM) - 1, rows, 1))
    predictions = Predictions(
        subsets=keep_SM[:-1],
        uid=np.arange(rows),
        patient=np.arange(rows),
        present=np.ones((rows, num), bool),
        prediction={"ihm48": nothing + 0.5},
        label={"ihm48": np.arange(rows)[:, None] % 2.0},
        label_mask={"ihm48": np.ones((rows, 1), bool)},
        counted=np.ones((len(keep_SM) - 1, rows), bool),
        routing={},
        groups={"ward": np.where(np.arange(rows) // 2 % 2, "a", "b")},
    )
    draws = bootstrap.resample(predictions.patient, draws=200, seed=seed)
    game = games.play(predictions, spec, SPEC.tasks[0], draws, min_patients=10, seed=seed)
    true_M = np.zeros(num)
    for three, value in zip(triples, mean_T, strict=True):
        true_M[list(three)] += value / 3
    return dataclasses.replace(game, value_Sn=whole_ST @ worth_nT.T), true_M


def test_the_error_of_sampled_orders_is_in_values_groups_and_the_primary_metric():
    game, _ = sampled_game(60, 0)
    found, pairs = attribution.describe(game), len(game.orders) // 2
    maps_RMS = attribution.pair_maps(game.keep_SM, game.orders)
    for some_n, rows in (
        (np.ones(60, bool), found["modalities"]),
        (np.arange(60) // 2 % 2 == 1, found["groups"]["ward"][0]["modalities"]),
    ):
        each_RM = maps_RMS @ game.value_Sn[:, some_n].mean(axis=1)
        half_M = t.ppf(0.975, pairs - 1) * each_RM.std(axis=0, ddof=1) / np.sqrt(pairs)
        alone = game.means(maps_RMS.mean(axis=0) @ game.value_Sn, some_n)
        for row, bare, half, middle in zip(rows, alone, half_M, each_RM.mean(axis=0), strict=True):
            e = row["shapley"]
            assert e["value"] == pytest.approx(middle, rel=1e-4) == bare["value"]
            below = np.hypot(e["value"] - bare["low"], half)
            assert e["value"] - e["low"] == pytest.approx(below, rel=1e-3) and below > half
            assert e["p"] >= bare["p"]
    for row in found["primary"]["modalities"]:
        assert abs(row["shapley"]["value"]) < 1e-12  # all answers are alike


def of_noise(kind, rare, rng, rows=200):
    """The primary metric's Shapley value of a modality where all answers are noise.

    `rare` patients have the last label or class.
    """
    modalities = tuple(ModalitySpec(m, "table", (1,)) for m in "ab")
    task, keep_SM = TaskSpec("t", kind, dim=3), np.array([[1, 1], [1, 0], [0, 1]], bool)
    label_NL = rng.permutation(np.r_[np.full(rare, 2), np.arange(rows - rare) % 2])[:, None]
    if kind == "multilabel":
        label_NL = np.eye(3)[label_NL[:, 0]]
    predictions = Predictions(
        subsets=keep_SM,
        uid=np.arange(rows),
        patient=np.arange(rows),
        present=np.ones((rows, 2), bool),
        prediction={"t": rng.dirichlet(np.ones(3), (3, rows)).astype(np.float32)},
        label={"t": label_NL.astype(float)},
        label_mask={"t": np.ones(label_NL.shape, bool)},
        counted=np.ones((3, rows), bool),
        routing={},
    )
    draws = bootstrap.resample(predictions.patient, draws=100, seed=int(rng.integers(1000)))
    args = predictions, DataSpec(modalities, (task,)), task, draws
    game = games.play(*args, min_patients=10)
    return attribution.describe(game)["primary"]["modalities"][0]["shapley"]


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_noise_is_seldom_worth_anything_where_two_have_the_rarest_label(kind):
    """A macro metric rests on these two: counted by all patients, noise often had p below 5 %."""
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        estimate = of_noise(kind, 2, rng)
        found.append(estimate.get("p", 1.0) <= 0.05)
        assert "%" not in estimate.get("note", "")  # in how many draws would tell of two
    assert sum(found) <= binom.ppf(0.999, 40, 0.05)
    alone = of_noise(kind, 1, rng)
    assert alone["low"] is None and "p" not in alone and alone["value"] is not None


@pytest.mark.slow
def test_intervals_over_sampled_orders_hold_the_truth_with_the_error_of_the_orders():
    """150 cohorts of 60 rows, with orders of their own; without their error half would fail."""
    held, bare, sets = [], [], 150
    for seed in range(sets):
        game, true_M = sampled_game(60, seed)
        assert 20 <= len(game.orders) < 60 and not game.complete
        rows = attribution.describe(game)["modalities"]
        ends = np.array([[r["shapley"][k] for k in ("low", "high")] for r in rows])
        held.append((ends[:, 0] <= true_M) & (true_M <= ends[:, 1]))
        alone = game.means(attribution.shapley_map(game.keep_SM, game.orders) @ game.value_Sn)
        bare.append([e["low"] <= true <= e["high"] for e, true in zip(alone, true_M, strict=True)])
        total = sum(r["shapley"]["value"] for r in rows)
        assert total == pytest.approx(game.value_Sn[0].sum() / 60, abs=1e-4)
    held_M, bare_M = np.sum(held, axis=0), np.sum(bare, axis=0)
    print("with the orders' error", held_M / sets, held_M.mean() / sets)
    print("without", bare_M / sets, bare_M.mean() / sets)
    assert (held_M >= least(sets, len(held_M))).all()
    assert bare_M.mean() < 0.8 * sets


def test_orders_have_the_seed_of_the_sweep():
    first, second = (np.array(subsets.every(12, 300, seed)) for seed in (0, 1))
    assert first.shape != second.shape or (first != second).any()
    whole = [np.concatenate([keep, np.zeros((1, 12), bool)]) for keep in (first, second)]
    assert subsets.orders(whole[0], 0) and subsets.orders(whole[1], 1)
    assert not subsets.orders(whole[0], 1)


def test_p_and_intervals_of_two_errors_are_those_of_their_sum():
    """Against a normal sample whose mean has both: 2,000 sets, 40 patients, 12 pairs."""
    rng, sets, held, found = np.random.default_rng(0), 2000, 0, 0
    for _ in range(sets):
        patients, pairs = rng.normal(size=40), rng.normal(size=12)
        value_B = rng.choice(patients, (300, 40)).mean(axis=1)
        e = games.estimate(patients.mean() + pairs.mean(), value_B + pairs.mean(), 40, pairs)
        held, found = held + (e["low"] <= 0 <= e["high"]), found + (e["p"] < 0.05)
    print("held", held / sets, "p below 5 %", found / sets)
    assert held >= least(sets, 1) and found <= sets - least(sets, 1)


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


def test_a_table_that_was_changed_is_refused(fabricate, tmp_path):
    spec, _, predictions = fabricate(rows=60)
    made = table.make(predictions, spec, predictions.patient)
    path = tmp_path / "results" / "test_subsets.parquet"
    write_private(path, made, tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert table.read(path, spec).uid.tolist() == predictions.uid.tolist()
    pq.write_table(made.slice(60), path)
    with pytest.raises(DataError, match="differs from its seal; --mode=eval writes it again"):
        table.read(path, spec)


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
