"""Every data set reads new raw files for a trained model, and tests its patients in folds.

The sets and their small files are those of test_every_data_set.
"""

import inspect
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from m4.data import apply, build, data_sets, index
from m4.data import manifest as manifests
from m4.data.store import Store
from m4.errors import ConfigError, DataError
from m4.run import trained
from tests import raw_files
from tests.data.test_every_data_set import CASES, PACKAGES, SMALL

GENERATED = ("synthetic", "synthetic_images")
COMPLETE = ("mfeat", "pam")  # of those without identifiers, what keeps nothing from training
NUMBERS = {"ptbxl": 2}  # of folds, where not every number will do
# Files of outcomes alone, and who has no labels without them.
OUTCOMES = {
    "physionet2012": ("physionet2012/Outcomes-*.txt",),
    "pam": ("PAMdata/processed_data/arr_outcomes.npy",),
    "adni": ("adni/label.csv",),
    "embed": ("embed*/tables/EMBED_OpenData_clinical.csv",),
    "gamma": ("gamma*/Glaucoma_grading/training/*_GT.*", "gamma*/Disc_Cup_Segmentation"),
}


def small(name, options):
    known = inspect.signature(data_sets.find(name).spec).parameters
    return options | {key: value for key, value in SMALL.items() if key in known}


def known_of(folder, options=None):
    """What a work directory would remember of a built folder, see `m4.run.trained`."""
    return apply.Trained(manifests.read(folder), trained.vocabulary(folder), options or {})


def rows(folder, split):
    """Key (or, without, number) -> flat key -> row, exactly as a batch is filled."""
    store, table = Store(folder, split), index.read(folder, split)
    found = store.read(np.arange(len(store)))
    keys = range(len(store)) if table is None else [tuple(r.values()) for r in table.to_pylist()]
    return {key: {name: a[i] for name, a in found.items()} for i, key in enumerate(keys)}


def read(name, folder, known, target):
    """Rows of a new folder, and its manifest."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    manifest = apply.write(target, folder, data_sets.find(name), known)
    return rows(target, apply.SPLIT), manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Raw and built folders by the id of a case, made when first asked for."""
    done = {}

    def make(request, name, options, write):
        pytest.importorskip(PACKAGES.get(name, "numpy"))
        case = request.node.callspec.id
        if case not in done:
            place = tmp_path_factory.mktemp("new")
            raw = place / "raw"
            raw.mkdir()
            write(raw)
            options = small(name, options)
            done[case] = raw, build.prepare(name, raw, place / "data", seed=1, options=options)
        return done[case]

    return make


@pytest.mark.parametrize(("name", "options", "write"), CASES)
def test_the_same_files_are_read_as_in_training(made, request, name, options, write, tmp_path):
    raw, built = made(request, name, options, write)
    known = known_of(built, small(name, options))
    if name in GENERATED:
        (tmp_path / "new.json").write_text('{"seed": 2, "num_patients": 20}')
        found, manifest = read(name, tmp_path, known, tmp_path / "to" / "x")
        assert len(found) >= 20 and manifest["normalisers"] == known.manifest["normalisers"]
        wild = {"seed": -1}, {"seed": 1e3}, {"seed": True}, {"seed": 2**80}, {"seed": None}
        wild = [(json.dumps(given), "seed must") for given in wild]
        values = ("many", 2.5, None, [3], True, {}, float("nan"))
        wild += [(json.dumps({"seed": 2, "num_patients": v}), "of the kind") for v in values]
        wild += [('{"seed": 2, "num_patients": -3}', "num_patients"), ("[1]", "seed must")]
        wild += [('{"seed": 2, "presence": 7}', "new.json: .*presence")]
        wild += [('{"seed": 1}', "same patients"), ("{}", "seed must"), ("", "missing")]
        for wrong, says in wild:
            (tmp_path / "new.json").write_text(wrong)
            with pytest.raises(DataError, match=says):
                read(name, tmp_path, known, tmp_path / "to" / "x")
        return
    own = raw / "support2" if name == "support2" else raw  # of tables, where the files are
    found, manifest = read(name, own, known, tmp_path / "to" / "x")
    before = [rows(built, split) for split in ("train", "val", "test")]
    if index.read(built, "train") is None:  # a number of a row of other files says nothing
        whose = [Counter(int(r["patient"]) for r in part.values()) for part in (found, *before)]
        assert {*whose[0]} >= {*sum(whose[1:], Counter())}
        if name in COMPLETE:
            by_sum = [Counter(_sum(r) for r in part.values()) for part in (found, *before)]
            assert by_sum[0] == sum(by_sum[1:], Counter()) and whose[0] == sum(whose[1:], Counter())
    else:
        expected = {key: row for split in before for key, row in split.items()}
        assert len(expected) == sum(map(len, before))
        assert {*expected} <= {
            *found
        }  # more may be asked: who has no label has no place in a split
        for key, row in expected.items():
            for column, array in row.items():
                np.testing.assert_array_equal(found[key][column], array, err_msg=column)
    for key in ("normalisers", "schema", "options", "fingerprint"):
        assert manifest[key] == known.manifest[key]
    with pytest.raises(DataError) as refused:
        (tmp_path / "nothing").mkdir()
        read(name, tmp_path / "nothing", known, tmp_path / "to" / "x")
    assert all(isinstance(line, str) and "\n" not in line for line in refused.value.args)


def _sum(row):
    return float(sum(np.abs(v).sum() for k, v in sorted(row.items()) if k.endswith("/values")))


@pytest.mark.parametrize(
    ("name", "options", "write"), [c for c in CASES if {*str(c.id).split("-")} & {*OUTCOMES}]
)
def test_outcomes_may_be_lacking(made, request, name, options, write, tmp_path):
    raw, built = made(request, name, options, write)
    known = known_of(built, small(name, options))
    with_labels, _ = read(name, raw, known, tmp_path / "to" / "x")
    bare = tmp_path / "bare"
    shutil.copytree(raw, bare)
    (patterns,) = [p for word, p in OUTCOMES.items() if word in request.node.callspec.id]
    for gone in [path for pattern in patterns for path in bare.glob(pattern)]:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    found, manifest = read(name, bare, known, tmp_path / "to" / "x")
    assert {*found} >= {*with_labels}
    for key, row in with_labels.items():
        for column, array in row.items():
            if column.startswith("y/"):
                assert not column.endswith("/mask") or not found[key][column].any()
            else:
                np.testing.assert_array_equal(found[key][column], array, err_msg=column)
    for facts in manifest["splits"]["new"]["labels"].values():
        assert not np.any(facts["known"])


@pytest.mark.parametrize(("name", "options", "write"), CASES)
def test_patients_are_tested_in_turns(made, request, name, options, write):
    raw, _ = made(request, name, options, write)
    found, options = data_sets.find(name), small(name, options)
    assert {"fold", "num_folds"} <= {*inspect.signature(found.spec).parameters}
    whose, number = [], NUMBERS.get(name, 3)
    for fold in (*range(number), 0):
        cohort = found.cohort(raw, seed=1, fold=fold, num_folds=number, **options)
        own = {s: [e["patient"] for e in start()] for s, start in cohort.splits.items()}
        assert own["train"] and own["test"] and not {*own["train"]} & {*own["val"]}
        assert not {*own["test"]} & {*own["train"], *own["val"]}
        whose.append(own)
    assert whose.pop() == whose[0]
    everybody = [Counter(p for part in own.values() for p in part) for own in whose]
    assert all(own == everybody[0] for own in everybody)
    assert sum((Counter(own["test"]) for own in whose), Counter()) == everybody[0]
    for wrong in ({"fold": 3, "num_folds": 3}, {"num_folds": 1}, {"fold": -1, "num_folds": 4}):
        with pytest.raises(ConfigError, match="fold"):
            found.spec(**options, **wrong)


def test_set_b_is_in_no_fold(tmp_path):
    raw_files.write_physionet2012(tmp_path, np.random.default_rng(0))
    found = data_sets.find("physionet2012")
    for path in (tmp_path / "physionet2012").glob("*-b*"):
        path.unlink()
    assert found.missing_files(tmp_path) != []
    assert found.missing_files(tmp_path, num_folds=5) == []
    cohort = found.cohort(tmp_path, seed=0, num_folds=5, fold=1)
    assert all("-b" not in file for file in cohort.sources)
    stays = [e["patient"] for start in cohort.splits.values() for e in start()]
    assert sorted(stays) == [*range(100, 180)]


MODULE = """
import csv
from m4.data.cohort import Cohort, checksums
from m4.specs import DataSpec, ModalitySpec, TaskSpec
VERSION, LICENCE, WHERE = "1", "none", "nowhere"
def spec(*, rows=0):
    return DataSpec((ModalitySpec("a", "table", (2,)),), (TaskSpec("ill", "binary"),))
def missing_files(raw_dir, **options):
    return [] if (raw_dir / "a.csv").exists() else [f"{raw_dir / 'a.csv'}: missing"]
def cohort(raw_dir, *, seed, **options):
    def split(k):
        for i, row in enumerate(csv.reader((raw_dir / "a.csv").read_text().splitlines())):
            if int(row[0]) % 3 == k:
                yield {"patient": int(row[0]), "inputs": {"a": {"values": [float(x) for x in
                       row[1:3]]}}, "targets": {"ill": float(row[3])}}
    splits = {n: lambda k=k: split(k) for k, n in enumerate(("train", "val", "test"))}
    return Cohort(spec(), splits, checksums(raw_dir, [raw_dir / "a.csv"]), LICENCE, VERSION)
"""


def test_a_module_outside_that_knows_nothing_of_it(tmp_path, monkeypatch):
    (tmp_path / "outside_of_m4").mkdir()
    (tmp_path / "outside_of_m4" / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "outside_of_m4.mine"
    rng = np.random.default_rng(0)
    lines = [f"{i},{rng.normal():.3f},{rng.normal():.3f},{i % 2}" for i in range(60)]
    for folder, some in (("raw", lines), ("more", lines[40:])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("\n".join(some) + "\n")
    built = build.prepare(name, tmp_path / "raw", tmp_path / "data", seed=0)
    found, manifest = read(name, tmp_path / "more", known_of(built), tmp_path / "to" / "x")
    assert len(found) == 20 and manifest["splits"]["new"]["labels"]["ill"]["known"] == [20]
    before = {
        int(r["patient"]): r for s in ("train", "val", "test") for r in rows(built, s).values()
    }
    for row in found.values():
        np.testing.assert_array_equal(row["a/values"], before[int(row["patient"])]["a/values"])
    (tmp_path / "more" / "a.csv").unlink()
    with pytest.raises(DataError, match=r"a\.csv: missing"):
        read(name, tmp_path / "more", known_of(built), tmp_path / "to" / "x")
