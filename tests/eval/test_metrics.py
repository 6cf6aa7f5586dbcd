import math

import numpy as np
import pytest

from m4.eval import metrics
from m4.eval.calibration import band, bin_index, brier_parts, ece, error, reliability, wilson
from m4.specs import TaskSpec

BINARY = TaskSpec("ihm", "binary")


def columns(*values):
    return np.array(values, float)[:, None]


def test_binary_by_hand():
    y, p = columns(0, 0, 1, 1), columns(0.1, 0.4, 0.35, 0.8)
    out = metrics.score(BINARY, y, y >= 0, p, threshold=np.array([0.35]))
    # pairs (negative, positive): .1<.35 .1<.8 .4>.35 .4<.8 -> 3 of 4 in order
    assert out["auroc"].value == pytest.approx(3 / 4)
    # from the top: .8 hit (precision 1/1), .4 miss, .35 hit (precision 2/3); mean of the two
    assert out["auprc"].value == pytest.approx((1 + 2 / 3) / 2)
    # at 0.5: tp 1, fp 0, fn 1 -> 2 / (2 + 0 + 1)
    assert out["f1"].value == pytest.approx(2 / 3)
    # at 0.35 (inclusive): tp 2, fp 1, fn 0 -> 4 / (4 + 1 + 0)
    assert out["f1_val"].value == pytest.approx(4 / 5)
    # squares: .01 .16 .4225 .04
    assert out["brier"].value == pytest.approx(0.6325 / 4)
    expected = -(math.log(0.9) + math.log(0.6) + math.log(0.35) + math.log(0.8)) / 4
    assert out["log_loss"].value == pytest.approx(expected)


def test_tied_scores_count_half():
    y, p = columns(0, 1, 1), columns(0.5, 0.5, 0.9)
    out = metrics.score(BINARY, y, y >= 0, p)
    assert out["auroc"].value == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_is_nan_with_a_reason(label):
    y, p = columns(*[label] * 3), columns(0.2, 0.3, 0.9)
    out = metrics.score(BINARY, y, y >= 0, p)
    assert math.isnan(out["auroc"].value) and out["auroc"].note == f"every label is {int(label)}"
    assert math.isnan(out["f1"].value) == (label == 0)
    assert math.isfinite(out["brier"].value) and math.isfinite(out["log_loss"].value)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass", "regression"])
def test_no_labelled_row_is_nan_everywhere(kind):
    dim = 1 if kind in ("binary", "regression") else 3
    task = TaskSpec("t", kind, dim=dim)
    y = np.zeros((4, 1 if kind == "multiclass" else dim))
    out = metrics.score(task, y, np.zeros(y.shape, bool), np.full((4, dim), 0.5))
    assert out and all(math.isnan(v.value) and v.note for v in out.values())


def test_masked_cells_do_not_matter():
    y, p = columns(0, 1, 1, 0), columns(0.1, 0.7, 0.9, 0.2)
    keep = np.array([[True], [True], [True], [False]])
    masked = metrics.score(BINARY, y, keep, p)
    y[3], p[3] = 1.0, np.nan
    assert metrics.score(BINARY, y, keep, p) == masked


def test_multilabel_by_hand():
    task = TaskSpec("phe", "multilabel", dim=3)
    y = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0.0]])
    p = np.array([[0.9, 0.2, 0.1], [0.3, 0.1, 0.6], [0.2, 0.8, 0.1]])
    mask = np.ones((3, 3), bool)
    out = metrics.score(task, y, mask, p)
    # label 0: positives .9 .2, negative .3 -> 1/2; label 1: positives .1 .8, negative .2 -> 1/2
    assert out["auroc_macro"].value == pytest.approx(0.5)
    assert out["auroc_macro"].note == "1 of 3 labels undefined and left out"
    # at 0.5, label 0: tp 1 fn 1 -> 2/3; label 1: tp 1 fn 1 -> 2/3; label 2 undefined
    assert out["f1_macro"].value == pytest.approx(2 / 3)
    # all cells: tp 2, fp 1 (label 2, row 1), fn 2 -> 4 / (4 + 1 + 2)
    assert out["f1_micro"].value == pytest.approx(4 / 7)
    # positives .9 .1 .2 .8; negatives .2 .1 .3 .6 .1
    # below each positive (ties half): 5, (0 + 2/2) = 1, (2 + 1/2) = 2.5, 5 -> 13.5 of 20
    assert out["auroc_micro"].value == pytest.approx(13.5 / 20)


def test_multiclass_by_hand():
    task = TaskSpec("unit", "multiclass", dim=3)
    y = columns(0, 1, 2, 2)
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    out = metrics.score(task, y, np.ones((4, 1), bool), p)
    assert out["accuracy"].value == pytest.approx(3 / 4)
    # class 0: tp 1 fp 1 -> 2/3; class 1: never said -> 0; class 2: perfect -> 1
    assert out["f1_macro"].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    # class 0: .7 over .5 .1 .2 -> 1; class 1: .3 over .2 .1 .2 -> 1; class 2 -> 1
    assert out["auroc_macro"].value == pytest.approx(1.0)
    nll = -(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.6)) / 4
    assert out["log_loss"].value == pytest.approx(nll)
    # rows: .09+.04+.01, .25+.49+.04, .01+.01+.04, .04+.04+.16
    assert out["brier"].value == pytest.approx((0.14 + 0.78 + 0.06 + 0.24) / 4)


def test_regression_by_hand():
    task = TaskSpec("los", "regression")
    y, p = columns(1, 2, 3, 6), columns(1, 3, 2, 8)
    out = metrics.score(task, y, y > 0, p)
    assert out["mae"].value == pytest.approx((0 + 1 + 1 + 2) / 4)
    assert out["rmse"].value == pytest.approx(math.sqrt((0 + 1 + 1 + 4) / 4))
    # mean 3: squares 4 1 0 9 = 14
    assert out["r2"].value == pytest.approx(1 - 6 / 14)
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert out["spearman"].value == pytest.approx(1 - 12 / 60)


def test_dice_is_a_mean_over_known_rows_and_channels():
    task = TaskSpec("cup", "segmentation", dim=2)
    scores = np.array([[1.0, 0.5], [0.0, 0.5], [1.0, 1.0]])
    known = np.array([[True, True], [True, True], [False, False]])
    assert metrics.score(task, np.zeros((3, 2)), known, scores)["dice"].value == 0.5
    nobody = metrics.score(task, np.zeros((3, 2)), known & False, scores)["dice"]
    assert np.isnan(nobody.value) and nobody.note


def test_constant_labels_and_predictions_are_named():
    task = TaskSpec("los", "regression")
    flat = metrics.score(task, columns(2, 2, 2), np.ones((3, 1), bool), columns(1, 2, 3))
    assert math.isnan(flat["r2"].value) and flat["r2"].note == "constant labels"
    still = metrics.score(task, columns(1, 2, 3), np.ones((3, 1), bool), columns(2, 2, 2))
    assert still["spearman"].note == "constant predictions" and still["r2"].value == 0.0


def test_threshold_maximises_f1():
    y, p = columns(0, 0, 1, 0, 1), columns(0.1, 0.2, 0.3, 0.4, 0.9)
    # cuts: .9 -> 2/3; .4 -> 1/2; .3 -> tp 2 fp 1 = 4/5; .2 -> 2/3; .1 -> 4/7
    assert metrics.choose_threshold(y, y >= 0, p) == pytest.approx([0.3])
    assert metrics.choose_threshold(columns(0, 0), np.ones((2, 1), bool), p[:2]) == [0.5]


def test_equal_mass_bins_keep_ties_together():
    p = np.array([0.1, 0.1, 0.1, 0.2, 0.3, 0.4])
    # quartile edges (numpy, linear): 0.1, 0.15, 0.275
    assert bin_index(p, 4).tolist() == [0, 0, 0, 2, 3, 3]


def test_ece_and_brier_parts_by_hand():
    y, p = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    # two bins cut at the median .45: means .2 against 1/2, .7 against 1/2
    assert ece(y, p, 2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.2)
    parts = brier_parts(y, p, 2)
    assert parts["reliability"] == pytest.approx(0.5 * 0.09 + 0.5 * 0.04)
    assert parts["resolution"] == pytest.approx(0.0)
    assert parts["uncertainty"] == pytest.approx(0.25)
    brier = (0.01 + 0.49 + 0.36 + 0.04) / 4
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within"]
    assert total == pytest.approx(brier)


def test_reliability_leaves_out_small_bins_and_counts_patients():
    y, p = np.tile([0.0, 1.0], 20), np.repeat([0.2, 0.8], 20)
    everyone = reliability(y, p, np.arange(40), num_bins=2)
    assert [b["predicted"] for b in everyone] == pytest.approx([0.2, 0.8])
    assert [b["observed"] for b in everyone] == [0.5, 0.5]
    low, high = wilson(0.5, 20)
    assert (everyone[0]["low"], everyone[0]["high"]) == (low, high)
    assert reliability(y, p, np.arange(40) % 9, num_bins=2) == []  # 20 rows, but 9 patients


def test_wilson_against_a_published_value():
    # 10 of 100 (Brown, Cai & DasGupta's formula by hand): centre .1148, half width .0596
    low, high = wilson(0.1, 100)
    assert (low, high) == pytest.approx((0.05523, 0.17437), abs=1e-5)


def test_calibration_error_of_very_few_and_of_very_sure_rows():
    # Eleven rows in ten bins, two of them nearly alike: chance cannot be told from a bin of one.
    predicted = np.array(
        [0.028, 0.016, 0.043, 0.29, 0.12, 0.0085, 0.64, 0.0125, 7e-4, 0.0096, 2.6e-3]
    )
    label = (predicted == 0.29).astype(float)
    value, low, high = error(label, predicted, np.arange(11))
    assert 0.2 < value < 0.4 and math.isnan(low) and math.isnan(high)  # known bad: ValueError
    assert np.isnan(band(label, predicted, np.arange(11) // 2)).all()  # of pairs one is alone, too
    # Gaps of 0.9 to a hundredth in many rows: the mean gap, and 1.96 deviations within ten bins.
    predicted = np.random.default_rng(0).uniform(0.89, 0.90, 50_000)
    value, low, high = error(np.zeros(50_000), predicted, np.arange(50_000))
    width = 1.96 * 0.01 / 12**0.5 / 10 / 50_000**0.5
    np.testing.assert_allclose([low, value, high], value + width * np.array([-1, 0, 1]), atol=2e-7)
    assert value == pytest.approx(predicted.mean(), abs=1e-5)
