"""Sets of people whose answer is not known: as evaluation judges them, from a file and back."""

import json
import stat

import ml_collections
import numpy as np
import pytest

from m4.errors import DataError
from m4.eval import calibrated, coverage
from m4.eval.predictions import Predictions
from m4.run import beside
from m4.specs import DataSpec, ModalitySpec, TaskSpec

SPEC = DataSpec(
    tuple(ModalitySpec(name, "table", (1,)) for name in ("a", "b", "c")),
    (TaskSpec("died", "binary"), TaskSpec("los", "regression", transform="log1p", needs=("a",))),
)
CONFIG = ml_collections.ConfigDict(
    {"seed": 0, "data": {"calibration": 0.0}, "eval": {"alpha": 0.1, "costs": {}, "missing": {}}}
)


def people(rng, rows):
    """Exchangeable rows, told apart the better the more is there, and by class."""
    present_NM = rng.random((rows, 3)) < [0.8, 0.5, 0.3]
    present_NM[~present_NM.any(axis=1), 0] = True
    died_N = rng.random(rows) < 0.25
    odds_N = (1 + present_NM.sum(axis=1)) * (2 * died_N - 1) * 0.7 - 1 + rng.normal(size=rows)
    los_N = np.exp(rng.normal(1, 0.5, rows))
    said_N = los_N * np.exp(rng.normal(0, 0.2 + 0.3 * present_NM[:, 1], rows))
    answers = {"died": 1 / (1 + np.exp(-odds_N)), "los": said_N}
    return Predictions(
        subsets=np.ones((1, 3), bool),
        uid=np.arange(rows),
        patient=rng.permutation(rows),
        present=present_NM,
        prediction={name: p[None, :, None].astype(np.float32) for name, p in answers.items()},
        label={"died": died_N[:, None].astype(float), "los": los_N[:, None]},
        label_mask={name: np.ones((rows, 1), bool) for name in answers},
        counted=np.ones((1, rows), bool),
        routing={},
    )


def test_sets_of_the_unknown_are_those_by_which_evaluation_judges(fabricate):
    spec, _, apart = fabricate(rows=500, seed=9, patient_offset=10_000)
    _, _, found = fabricate(rows=400, seed=8)
    rules = json.loads(json.dumps(calibrated.rules(apart, spec, 0.1)))
    said = {
        (one.question.task.name, one.question.column): one
        for one in calibrated.sets(found, spec, rules)
    }
    judged = [*coverage.judge(found, spec, alpha=0.1, calibration=apart)]
    assert len(judged) == len(said) == 6
    for verdicts in judged:
        question, best = verdicts.question, verdicts.best
        one = said[question.task.name, question.column]
        if one.inside_NK is not None:
            np.testing.assert_array_equal(one.inside_NK[question.rows], best.inside_NK)
            continue
        assert one.ends_N2 is not None
        low_N, high_N = one.ends_N2[question.rows].T
        width = coverage.describe_cell(verdicts, best, np.ones(len(low_N), bool), 0.1)["size"]
        assert np.median(high_N - low_N) == pytest.approx(width, rel=1e-6)
        inside = (low_N <= question.truth_N) & (question.truth_N <= high_N)
        assert (inside == best.covered_N).all()


def test_sets_from_the_file_cover_each_pattern_and_class(tmp_path):
    rng, covered = np.random.default_rng(0), []
    for _ in range(25):
        beside.write(tmp_path, people(rng, 800), SPEC, 0.1)
        found = people(rng, 800)
        columns = beside.of(tmp_path, CONFIG, SPEC).columns(found)
        died_N, los_N = (found.label[name][:, 0] for name in ("died", "los"))
        names = ("no died", "died")
        both = zip(columns["set/died"].to_pylist(), died_N, strict=True)
        in_set_N = np.array([names[int(truth)] in named for named, truth in both])
        ends = (columns[f"{end}/los"].to_numpy(zero_copy_only=False) for end in ("low", "high"))
        low_N, high_N = ends
        asked_N = found.present[:, 0]
        assert (np.isnan(low_N) == ~asked_N).all()  # it needs a
        pattern_N = found.present @ [1, 2, 4]
        covered += [
            (f"died {p} {k}", in_set_N[(pattern_N == p) & (died_N == k)])
            for p in (1, 3, 7) for k in (0, 1)
        ]  # fmt: skip
        inside_N = (low_N <= los_N) & (los_N <= high_N)
        covered += [(f"los {p}", inside_N[pattern_N == p]) for p in (1, 3, 5, 7)]
    for cell in {name for name, _ in covered}:
        share = np.concatenate([hits for name, hits in covered if name == cell])
        assert 0.88 <= share.mean() <= 0.96, (cell, share.mean())  # small cells: up to 1 / (n + 1)
    assert not stat.S_IMODE((tmp_path / "calibration.json").stat().st_mode) & 0o077


def test_a_file_that_does_not_fit_is_not_believed(tmp_path, monkeypatch):
    (nobody, advice) = beside.of(tmp_path, CONFIG, SPEC).lines
    assert "no prediction sets: no patients were set aside" in nobody
    assert "eval.subsets=all" in advice
    beside.write(tmp_path, people(np.random.default_rng(1), 300), SPEC, 0.2)
    said = beside.of(tmp_path, CONFIG, SPEC).lines[0]
    assert "is of eval.alpha=0.2; --config.eval.alpha=0.2 takes its sets" in said
    beside.write(tmp_path, people(np.random.default_rng(1), 300), SPEC, 0.1)
    assert beside.of(tmp_path, CONFIG, SPEC).lines == (advice,)
    degraded = ml_collections.ConfigDict(CONFIG.to_dict())
    degraded.eval.missing = {"kind": "mcar", "rate": {"a": 1.0}}
    known = beside.of(tmp_path, degraded, SPEC)
    assert known.rules and "calibrated on rows as they are" in known.lines[0]
    monkeypatch.setattr(beside, "parameters", lambda folder: ["3 another"])
    assert "is of other parameters" in beside.of(tmp_path, CONFIG, SPEC).lines[0]
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    with pytest.raises(DataError, match="is damaged; --mode=eval writes it again"):
        beside.of(tmp_path, CONFIG, SPEC)
