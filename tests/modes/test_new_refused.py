"""`--on`: what is refused, in one line and with the documented exit code."""

import contextlib
import hashlib
import json
import shutil

import ml_collections
import pyarrow.parquet as pq
import pytest

from m4 import seal
from m4.errors import ConfigError, DataError
from m4.main import main
from m4.run import trained
from tests.data import meds_folder as mf
from tests.modes.hospital import DEFINITION, ask, everyone, only, write


def small():
    return only(everyone(), lambda s: s <= 5)


def no_points(folder):
    shutil.rmtree(folder / "labels")


def one_too_high(folder):
    folder.rename(folder.with_name("inner"))
    folder.mkdir()
    folder.with_name("inner").rename(folder / "hospital")


def no_rows(folder):
    for path in (folder / "labels").rglob("*.parquet"):
        pq.write_table(pq.read_table(path).slice(0, 0), path)


def damaged(folder):
    (folder / "data/train/0.parquet").write_bytes(b"PAR1 no")


def without_events(folder):
    shutil.rmtree(folder / "data")


def strangers_only(folder):
    pq.write_table(mf.labels([(900, 4, True)]), folder / "labels/death/0.parquet")
    shutil.rmtree(folder / "labels/los")


def odd_points(folder):
    (folder / "points.csv").write_text("patient,prediction_time\n1,2100-01-01 04:00\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "no such folder"),
        (no_points, "no label files (labels/death, labels/los) and no points.parquet"),
        (one_too_high, "who is asked, and when?; try "),
        (no_rows, "no row of the label files"),
        (damaged, "train/0.parquet: cut short, corrupt"),
        (without_events, "no event files (data)"),
        (strangers_only, "no record has anything to predict from"),
        (odd_points, "points.csv: has no column 'subject_id'"),
    ],
)
def test_bad_folders_are_refused_in_a_line(place, capsys, spoil, says):
    spoil(write(place, "bad", small()))
    assert ask(place, "bad") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("m4: data error: ") and says in line
    assert not (place / "w/.new").exists()


def test_a_definition_that_changed_is_refused(place, capsys):
    write(place, "bad", small())
    (place / "spec.toml").write_text(DEFINITION.replace('"hospital"', '"next month"'))
    try:
        assert ask(place, "bad") == 0  # where the files are may change
        (place / "spec.toml").write_text(DEFINITION.replace("hours = 4", "hours = 8"))
        capsys.readouterr()
        assert ask(place, "bad") == 2
    finally:
        (place / "spec.toml").unlink()
    (line,) = capsys.readouterr().err.splitlines()
    assert "changed since training: window.hours: 4 -> 8" in line


def test_what_cannot_be_asked_for(place, capsys):
    assert main([f"--on={place / 'w'}"]) == 2
    assert "--on: needs --workdir" in capsys.readouterr().err
    flags = [f"--workdir={place / 'w'}", f"--on={place / 'w'}"]
    assert main([*flags, "--mode=train"]) == 2
    assert "--on: goes with --mode=predict, not with --mode=train" in capsys.readouterr().err
    (place / "cv/fold_0").mkdir(parents=True)
    shutil.copyfile(place / "w/config.json", place / "cv/config.json")
    flags = [f"--workdir={place / 'cv'}", f"--on={place / 'w'}"]
    assert main([*flags, "--trust_code"]) == 3  # a copied config.json is nobody's own
    assert "fold_0/data.json: no manifest of the training data" in capsys.readouterr().err
    config = ml_collections.ConfigDict({"data": {"name": "synthetic"}})
    with pytest.raises(ConfigError, match="'synthetic' reads files of its own layout only"):
        trained.defined(config)


def test_a_work_directory_without_its_memory_is_refused(place, capsys):
    write(place, "bad", small())
    whole = json.loads((place / "w/data.json").read_text())
    damage = [resealed(whole, **{key: bad}) for key in whole for bad in (7, {}, ["x"])]
    damage += [seal.sealed({k: v for k, v in whole.items() if k != key}) for key in whole]
    for manifest in damage:
        (place / "w2").mkdir(exist_ok=True)
        (place / "w2/data.json").write_text(json.dumps(manifest))
        with contextlib.suppress(DataError):  # and no other
            trained.read(place / "w2")
    good = {name: (place / "w" / name).read_text() for name in ("data.json", "vocabulary.json")}
    none, odd = json.dumps({"drugs": []}), json.dumps({"drugs": [], "notes": "x"})
    many = json.dumps({"drugs": [*"abcdefghijk"], "notes": []})
    for manifest, vocabulary, says in (
        ("{", None, "data.json: no manifest of the training data"),
        ({**whole, "hours": 5}, None, "no manifest of the training data"),  # breaks the seal
        (resealed(whole, normalisers={}), None, "no manifest of the"),
        (resealed(whole, fingerprint="../../x"), None, "no manifest of the"),
        (resealed(whole, declared={}), None, "another schema"),
        (whole, many, "is not the vocabulary of the training data"),
        (vouching(whole, none), none, "the vocabulary of notes is not known"),
        (vouching(whole, odd), odd, "no vocabulary of the training data"),
        (vouching(whole, many), many, "larger than the model's"),
    ):
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (place / "w/data.json").write_text(text)
        (place / "w/vocabulary.json").write_text(vocabulary or good["vocabulary.json"])
        try:
            assert ask(place, "bad") == 3
        finally:
            for name, text in good.items():
                (place / "w" / name).write_text(text)
        assert says in capsys.readouterr().err


def resealed(manifest, **changes):
    return seal.sealed({**manifest, **changes})


def vouching(manifest, vocabulary):
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()
    return resealed(manifest, files={"vocabulary.json": digest})
