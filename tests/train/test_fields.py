"""The trainer's fields from the command line: precision, remat, accumulate, missing."""

import json

import pytest

from tests.test_main import CONFIG, run

ALL = (
    "--config.train.precision=bfloat16",
    "--config.train.accumulate=2",
    "--config.train.remat=dots",
    "--config.train.missing.kind=mcar",
    "--config.train.missing.rate={'vitals': 0.5}",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    (folder / "toy.py").write_text(CONFIG)
    assert run(folder, *ALL) == 0
    return folder


def test_evaluation_under_missingness_says_so(place, capsys):
    before = json.loads((place / "w/results/test.json").read_text())
    assert "missing" not in before
    lost = ("--config.eval.missing.kind=mcar", "--config.eval.missing.rate={'vitals': 1.0}")
    assert run(place, *ALL, "--mode=eval", *lost) == 0
    assert "made to lack more: mcar (rate {'vitals': 1.0})" in capsys.readouterr().out
    after = json.loads((place / "w/results/test.json").read_text())
    assert after["missing"] == {"kind": "mcar", "rate": {"vitals": 1.0}}
    assert "mcar" in (place / "w/report.html").read_text()
    assert after["patterns"] != before["patterns"]  # nobody has vitals
    # The same draws whatever the batches are.
    scores = []
    for size in (16, 32):
        half = ("--config.eval.missing.kind=mcar", "--config.eval.missing.rate=0.3")
        assert run(place, *ALL, "--mode=eval", *half, f"--config.eval.batch_size={size}") == 0
        scores.append(json.loads((place / "w/results/test.json").read_text())["patterns"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("eval.missing.kind=mcarr", "kind='mcarr': must be one of mcar"),
        ("train.missing.rate={'vital': 0.5}", "vital: no such modality; modalities are vitals"),
        ("train.precision=float16", "must be one of float32, bfloat16"),
        ("train.accumulate=3", "must cut train.batch_size=16 into multiples"),
        ("train.remat=layer", "no numbered layers"),
    ],
)
def test_what_does_not_fit_is_refused(place, capsys, flag, words):
    kind = ("--config.train.missing.kind=mcar",) if "rate" in flag else ()
    assert run(place, *kind, f"--config.{flag}", workdir="never") == 2
    assert words in capsys.readouterr().err
    assert not (place / "never").exists()  # before anything is built
