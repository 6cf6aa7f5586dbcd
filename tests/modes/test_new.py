"""`--on`: a trained work directory, alone, reads new folders of the same kind."""

import hashlib
import json
import os
import shlex
import shutil
import stat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from m4.data import index
from m4.main import main
from m4.modes import new
from m4.run import trained
from tests.data import meds_folder as mf
from tests.data.test_meds_guide import COMMANDS
from tests.modes.hospital import POINT, ask, everyone, only, predicted, with_events, write


def assert_same(found, expected):
    """Inputs are equal to the bit (tests/data/test_apply.py); places in a batch differ."""
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([*found.values()], [expected[key] for key in found], rtol=1e-6)


def counts(place, name):
    return json.loads((place / f"w/predictions/{name}.json").read_text())


def test_the_old_folder_gets_the_old_predictions_to_the_bit(place, usual, capsys):
    test = predicted(place, "test")
    assert len(test) == 36 and len(usual) == 180  # 18 and 90 points, two tasks
    assert_same(test, {key: usual[key] for key in test})
    tested = {subject for subject, _, _ in test}
    assert ask(place, "tested", only(everyone(), lambda s: s in tested)) == 0
    for path in ("{}.parquet", "meds/{}/death.parquet", "meds/{}/los.parquet"):
        old, again = (
            pq.read_table(place / "w/predictions" / path.format(name))
            for name in ("test", "tested")
        )
        assert old.equals(again)  # the whole table: rows, order, labels, hashes of patients
        assert stat.S_IMODE(os.stat(place / "w/predictions" / path.format("tested")).st_mode) == (
            0o600
        )
    old, again = (
        json.loads((place / f"w/results/{name}.json").read_text()) for name in ("test", "tested")
    )
    assert old["scores"] == again["scores"]
    metrics = again["scores"][0]["metrics"]
    assert metrics["auroc"]["value"] is not None and "f1_val" in metrics  # the cut of validation
    assert "tested split" in capsys.readouterr().out
    assert not (place / "w/.new").exists()


def test_nobody_else_matters(place, usual):
    poison = [(1000 + i, 1, "VITAL//HR", 3e38) for i in range(9)]
    poison += [(1000, 2, "VITAL//TEMP//C", float("inf")), (1001, 1, "DRUG//zz")]
    poison += [(1002, 1, "NOTE//nurse", None, "no such words"), (1, 2.5, "LAB//new", 1.0)]
    some = only(everyone(), lambda s: s % 3 == 1)
    some = with_events(some, poison)
    asked = some["labels/death/0.parquet"]
    strangers = mf.labels([(1000 + i, 4, True) for i in range(9)])
    some["labels/death/0.parquet"] = pa.concat_tables([strangers, asked])
    assert ask(place, "poisoned", some) == 0
    found = predicted(place, "poisoned")
    assert len(found) == 60 + 18
    known = {key: value for key, value in found.items() if key[0] < 1000}
    assert_same(known, {key: value for key, value in usual.items() if key[0] % 3 == 1})


def test_the_future_does_not_matter(place, usual):
    rows = [(s, 8.001, code, 500.0, "pain") for s in range(1, 61)
            for code in ("VITAL//HR", "VITAL//TEMP//C", "DRUG//a", "NOTE//nurse")]  # fmt: skip
    given = with_events(everyone(), rows)
    assert ask(place, "future", given) == 0
    assert predicted(place, "future") == usual


def test_labels_are_not_needed(place, usual, capsys):
    given = everyone()
    bare = given.pop("labels/los/0.parquet").select(POINT)
    assert ask(place, "bare", {**given, "labels/death/0.parquet": bare}) == 0
    assert predicted(place, "bare") == usual
    printed = capsys.readouterr().out
    assert "death: label rows without a column boolean_value" in printed
    assert "no labels, no scores" in printed and not (place / "w/results/bare.json").exists()
    rows = pq.read_table(place / "w/predictions/meds/bare/death.parquet")
    assert rows["boolean_value"].null_count == len(rows) == 90
    assert len(pq.read_table(place / "w/predictions/meds/bare/labels/death.parquet")) == 0


def test_a_points_file_says_who_is_asked(place, usual):
    given = everyone()
    first = given["labels/death/0.parquet"].select(POINT).slice(0, 40)
    folder = write(place, "pointed", given)
    pa.csv.write_csv(first, folder / "points.csv")
    assert ask(place, "pointed") == 0
    found = predicted(place, "pointed")
    wanted = {tuple(row.values()) for row in first.to_pylist()}
    assert_same(found, {key: value for key, value in usual.items() if key[:2] in wanted})
    assert len(found) == 80
    rows = pq.read_table(place / "w/predictions/meds/pointed/death.parquet")
    assert rows["boolean_value"].null_count == 0  # what is known at these points is used
    assert ["label rows at no point that is asked", 50] in counts(place, "pointed")["flow"]
    shutil.rmtree(folder / "labels")
    assert ask(place, "pointed") == 0
    assert predicted(place, "pointed") == found


def test_codes_never_seen_are_out_of_vocabulary_and_counted(place, usual, capsys):
    def renamed(given, to):
        for path in [path for path in given if path.startswith("data/")]:
            codes = pc.replace_substring_regex(given[path]["code"], "DRUG//.*", f"DRUG//{to}")
            given[path] = given[path].set_column(2, "code", codes)
        return given

    for name in ("zz", "yy"):
        assert ask(place, name, renamed(everyone(), name)) == 0
    assert predicted(place, "zz") == predicted(place, "yy") != usual
    flow = dict(counts(place, "zz")["flow"])
    assert flow["drugs: tokens"] == flow["drugs: tokens outside the vocabulary"] == 120
    assert "drugs: tokens outside the vocabulary" in capsys.readouterr().out


def test_a_modality_that_is_lacking_is_absent_and_told(place, usual, capsys):
    def without(given, pattern):
        for path in [path for path in given if path.startswith("data/")]:
            some = pc.match_like(given[path]["code"], pattern)
            given[path] = given[path].filter(pc.invert(some))
        return given

    assert ask(place, "mute", without(everyone(), "NOTE//%")) == 0
    assert "warning  notes: in 0 of 90 records (training: " in capsys.readouterr().out
    assert counts(place, "mute")["present"]["notes"] == 0
    found = predicted(place, "mute")
    assert found.keys() == usual.keys() and found != usual
    assert ask(place, "cool", without(everyone(), "VITAL//TEMP%")) == 0
    assert "warning  vitals: temp in 0 of 90 records" in capsys.readouterr().out


def test_rows_in_are_rows_out_and_drops_are_counted(place, capsys):
    few = only(everyone(), lambda s: s <= 10)
    asked = [(s, 4, True) for s in (*range(1, 11), 77)]  # 77 has no event
    few["labels/death/0.parquet"] = mf.labels(asked)
    few["labels/los/0.parquet"] = few["labels/los/0.parquet"].slice(0, 0)
    assert ask(place, "few", few) == 0
    found = counts(place, "few")
    assert (found["points"], found["predicted"]) == (11, 10)
    assert ["points with nothing to predict from", 1] in found["flow"]
    assert ["points of subjects without any event", 1] in found["flow"]
    assert "no row for <10 points with nothing to predict from" in capsys.readouterr().out
    assert len(predicted(place, "few")) == 20


def test_the_guide(place, usual, monkeypatch):
    (line,) = [line for line in COMMANDS.splitlines() if "--on=" in line]
    command = shlex.split(line, comments=True)
    assert command[:3] == ["python", "-m", "m4.main"]
    flags = dict(flag.lstrip("-").split("=") for flag in command[3:])
    monkeypatch.chdir(place)
    (place / flags["workdir"]).parent.mkdir(parents=True)
    (place / flags["workdir"]).symlink_to(place / "w")
    write(place, flags["on"], everyone())
    assert main(command[3:]) == 0
    assert predicted(place, flags["on"]) == usual


def test_who_was_trained_on_is_told_while_it_is_known(place, usual, monkeypatch, capsys):
    monkeypatch.setenv("M4_DATA_DIR", str(place / "data"))
    home = place / "data/meds" / json.loads((place / "w/data.json").read_text())["fingerprint"]
    home.mkdir(parents=True)
    index.write(home, "train", [(s, 0) for s in range(1, 21)])
    try:
        assert ask(place, "known", everyone()) == 0
    finally:
        shutil.rmtree(place / "data")
    asked = sum(subject <= 20 for subject, _, task in usual if task == "death")
    says = f"warning  {asked} of 90 records have the identifier of a training subject"
    assert asked == 30 and says in capsys.readouterr().out


def test_the_memory_of_a_trained_model_is_not_overwritten(tmp_path):
    for name in ("old", "young"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"fingerprint": name}))
    (tmp_path / "old/vocabulary.json").write_text('{"drugs": ["a"]}')
    folder = tmp_path / "w"
    folder.mkdir()
    trained.keep(tmp_path / "young", folder)
    trained.keep(tmp_path / "old", folder)  # nothing was trained yet
    (folder / "checkpoints/best/3").mkdir(parents=True)
    trained.keep(tmp_path / "young", folder)
    assert json.loads((folder / "data.json").read_text())["fingerprint"] == "old"
    assert (folder / "vocabulary.json").read_text() == '{"drugs": ["a"]}'
    shutil.rmtree(folder / "checkpoints")
    trained.keep(tmp_path / "young", folder)
    assert not (folder / "vocabulary.json").exists()


@pytest.mark.parametrize(
    ("folder", "name"),
    [("a/ward", "ward"), ("a/test", "test-new"), ("a/b c!", "b_c_"), ("/", "new"), ("a/..", "new")],
)
def test_names(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir("/")
    assert new.name_of(new.Path(folder)) == name


def test_two_folders_of_one_name_do_not_take_each_others_place(tmp_path):
    a, b, work = tmp_path / "a/ward", tmp_path / "b/ward", tmp_path / "w"
    for folder in (a, b, work / "predictions"):
        folder.mkdir(parents=True)
    assert new.free_name(work, a) == "ward"
    kept = work / "predictions/ward.json"
    kept.write_text(json.dumps({"place": hashlib.sha256(os.fsencode(a)).hexdigest()}))
    assert new.free_name(work, a) == "ward"  # again
    other = new.free_name(work, b)
    assert other == f"ward-{hashlib.sha256(os.fsencode(b)).hexdigest()[:8]}"
    assert new.name_of(a.parent / other) == other
    for damaged in ("{", "[]", '{"rows": 3}'):  # and of an older version, which did not say
        kept.write_text(damaged)
        assert new.free_name(work, b) == "ward"
