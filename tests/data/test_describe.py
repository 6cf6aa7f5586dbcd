"""Inspecting built data and MEDS folders: what is shown, what is warned of, what is kept back."""

import datetime
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4.data import build, describe, manifest
from m4.data.__main__ import main
from m4.data.cohort import Cohort
from m4.data.sets import meds
from m4.data.sets.declared import arrow_files
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.data import meds_folder as mf

SPEC = DataSpec(
    (
        ModalitySpec("labs", "table", (4,), ("noise", "leak", "constant", "never")),
        ModalitySpec("drugs", "codes", (4,), dtype="int32", vocab=4),
    ),
    (
        TaskSpec("death", "binary"),
        TaskSpec("los", "regression"),
        TaskSpec("unit", "multiclass", dim=3, labels=("a", "b", "rare")),
    ),
)


def example(split, number):
    rng = np.random.default_rng([number, split == "train"])
    death, los = number % 3 == 0, rng.exponential(3)
    inputs = {"labs": {"values": [rng.normal(), 3 * death + rng.random(), 7.0, np.nan]}}
    if split != "test" or number < 4:
        inputs["drugs"] = {"values": np.array([3] if los > 2 else [1, 2])}
    unit = 2 if number == 5 else number % 2
    targets = {"death": float(death), "los": los, "unit": unit}
    return {"patient": number + 1000 * (split == "test"), "inputs": inputs, "targets": targets}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def start(split, numbers):
        return lambda: (example(split, i) for i in numbers)

    splits = {
        "train": start("train", range(120)),
        "val": start("train", range(120, 150)),
        "test": start("test", range(60)),
    }
    cohort = Cohort(SPEC, splits, {}, "CC0", "1", [("stays", 300), ("too short", 3)], "made up")
    place = tmp_path_factory.mktemp("described")
    names = {"format": manifest.FORMAT, "name": "toy", "version": "1", "seed": 0}
    manifest.write(place, {**names, "fingerprint": "abc", **build.write(place, cohort)})
    return place


def test_the_description_of_a_build(folder, capsys):
    assert main(["describe", str(folder)]) == 0
    text = capsys.readouterr().out
    for expected in (
        r"rows +120 +30 +60\n",
        r"labs +100.0% +100.0% +100.0% +table 4\n",
        r"drugs +100.0% +100.0% +rare +codes 4, 4 ids",
        r"death +120; 33.3% +30; 33.3% +60; 33.3% +binary",
        r"154  all\n +56  labs\n",
        r"300  stays\n +<10  too short\n",
        "licence: CC0",
        "! unit: fewer than 50 rows of train have the rarer outcome .rare.",
        "! labs: never observed in training: never\n",
        "! labs: always the same value in training: constant\n",
        "! drugs: present in far fewer rows of test",
        r"! labs/leak alone tells death .AUROC 1.000.: is it known only afterwards",
    ):
        assert re.search(expected, text), expected
    assert "noise alone" not in text and text.count("alone tells") == 1


def test_a_value_that_is_the_label_is_found():
    rng = np.random.default_rng(0)
    y_N, x_NF = rng.normal(size=80), rng.normal(size=(80, 3))
    x_NF[:, 1] = np.exp(-y_N)
    x_NF[:40, 2] = np.nan
    found = np.abs(describe._correlation(x_NF, y_N))
    assert found[1] == pytest.approx(1.0) and found[0] < 0.4 and found[2] == 0.0
    # AUROC by hand: positives 3, 1; negatives 2, missing (lowest): of 4 pairs 3 are in order.
    x_NF = np.array([[3.0], [1.0], [2.0], [np.nan]])
    many = np.repeat(x_NF, 10, axis=0), np.repeat([True, True, False, False], 10)
    assert describe._auroc(*many) == pytest.approx([0.75])


def test_a_meds_folder_is_described_and_drafted(tmp_path, capsys):
    mf.write(tmp_path, mf.cohort_tables(60))
    place = tmp_path / "hospital"
    assert main(["describe", str(place)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"VITAL +2 +\d+ +100%", text) and "labels death: labels/death" in text
    assert main(["draft", str(place)]) == 0
    draft = capsys.readouterr().out
    (tmp_path / "draft.toml").write_text(draft)
    spec = meds.spec(file=str(tmp_path / "draft.toml"))
    kinds = {m.name: m.kind for m in spec.modalities}
    assert kinds == {"vital": "series", "drug": "codes", "note": "text", "static": "table"}
    assert spec.modality("static").features == ("sex=F", "sex=M", "age")
    assert [(t.name, t.kind) for t in spec.tasks] == [("death", "binary")]
    cohort = meds.cohort(tmp_path, seed=0, file=str(tmp_path / "draft.toml"))
    assert sum(1 for start in cohort.splits.values() for _ in start()) == 90


def test_groups_of_few_subjects_are_not_named(tmp_path, capsys, monkeypatch):
    """Whatever stands in a code: a name, a number, a death, what steers a terminal."""
    monkeypatch.setattr(arrow_files, "BATCH", 3)  # a subject that comes again counts once
    few = ["MRN 4711 Jane Roe/letter", *["John Doe//x"] * 40, "Doe death\n[x]//y", "\x1b[31mX//y"]
    codes = [*(["HR//bpm"] * 12), *(["\x1b[7mEX//y"] * 10), *few]
    people = [*range(12), *range(10), *([3] * len(few))]
    times = [datetime.datetime(2020, 1, 1)] * len(codes)
    table = {
        "subject_id": people,
        "time": times,
        "code": codes,
        "numeric_value": [1.0] * len(codes),
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(table), tmp_path / "data/0.parquet")
    assert main(["describe", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"HR +1 +12 +100%", text) and " [7mEX " in text
    assert re.search(r"\(groups of few subjects\) +<10 +43\n", text)
    assert main(["draft", str(tmp_path)]) == 0
    draft = capsys.readouterr().out
    assert "HR" in draft
    for said in (text, draft):
        assert not re.search(r"Roe|Doe|4711|\x1b", said)


def test_wrong_commands_end_in_a_line(tmp_path, capsys):
    assert main(["describe", str(tmp_path / "no")]) == 3
    assert main(["describe", str(tmp_path)]) == 3
    assert main(["explain", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("m4: ") for line in lines)
