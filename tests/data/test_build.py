import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from m4.data import build
from m4.data import manifest as manifests
from m4.data.cohort import checksums
from m4.data.store import Store
from m4.errors import DataError, SaveError
from tests.data.test_temporary import DEAD, left
from tests.data.toy_cohort import build_into, example, make_cohort


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An importable data set with one source file; returns its namespace and folders."""
    raw, home = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    (raw / "file.txt").write_text("content")
    (tmp_path / "toylab").mkdir()
    (tmp_path / "toylab" / "toy.py").write_text(
        textwrap.dedent("""
        import dataclasses
        from m4.data.cohort import checksums
        from tests.data import toy_cohort
        VERSION, LICENCE, WHERE = "1", "CC0", "get file.txt from the toy shop"
        builds = []
        def spec(**options):
            return toy_cohort.SPEC
        def missing_files(raw_dir, **options):
            return [] if (raw_dir / "file.txt").exists() else ["raw/file.txt is missing"]
        def cohort(raw_dir, *, seed, **options):
            builds.append(seed)
            cohort = toy_cohort.make_cohort()
            sources = checksums(raw_dir, [raw_dir / "file.txt"])
            return dataclasses.replace(cohort, sources=sources)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("toylab.toy", fromlist=["toy"]), raw, home
    for name in ("toylab.toy", "toylab"):
        sys.modules.pop(name, None)


def test_a_damaged_folder_is_built_again(module):
    toy, raw, home = module
    folder = build.prepare("toylab.toy", raw, home)
    path = folder / "manifest.json"
    good = path.read_bytes()
    old = {k: v for k, v in json.loads(good).items() if k not in ("files", "sha256")}
    for text in (good.replace(b'"rows": 9', b'"rows": 8'), json.dumps(old).encode(), b"{"):
        path.write_bytes(text)
        assert build.prepare("toylab.toy", raw, home) == folder
        assert path.read_bytes() == good
    assert toy.builds == [0] * 4
    path.write_bytes(text)
    toy.missing_files = lambda raw_dir: ["file.txt: missing"]
    with pytest.raises(DataError, match="file.txt: missing") as error:  # and why it is needed
        build.prepare("toylab.toy", raw, home)
    assert "manifest.json: no readable manifest" in error.value.lines()[0]
    assert [*home.rglob(".partial-*")] == []


def test_builds_once_and_again_only_when_something_changed(module, monkeypatch):
    monkeypatch.setattr(build, "SMALL", 0)
    toy, raw, home = module
    told = []
    first = build.prepare("toylab.toy", raw, home, seed=1, report=told.append)
    assert build.prepare("toylab.toy", raw, home, seed=1, report=told.append) == first
    (built,) = told  # the flow of the cohort is told when it is built, and only then
    assert manifests.flow_lines(built)[-3:] == [
        "          40  records, train",
        "          11  records, val",
        "         <10  records, test",
    ]
    assert toy.builds == [1]  # the second call did not even hash
    os.utime(raw / "file.txt", (1, 1))  # same bytes, new time stamp: hashed, not rebuilt
    inode = (first / "manifest.json").stat().st_ino
    assert build.prepare("toylab.toy", raw, home, seed=1) == first
    assert toy.builds == [1, 1] and (first / "manifest.json").stat().st_ino == inode
    assert build.prepare("toylab.toy", raw, home, seed=1) == first
    assert toy.builds == [1, 1]  # the new time stamp is known now
    (raw / "file.txt").write_text("changed")
    folders = {first, build.prepare("toylab.toy", raw, home, seed=1)}
    folders.add(build.prepare("toylab.toy", raw, home, seed=2))
    folders.add(build.prepare("toylab.toy", raw, home, seed=1, options={"x": 1}))
    toy.VERSION = "2"
    folders.add(build.prepare("toylab.toy", raw, home, seed=1))
    assert len(folders) == 5
    (raw / "file.txt").unlink()  # built data outlives its sources
    assert build.prepare("toylab.toy", raw, home, seed=1) in folders


def several(toy):
    """The toy data set reads every text below its raw folder, and 'late.csv' should it come."""

    def cohort(raw_dir, *, seed, **options):
        toy.builds.append(seed)
        paths = [p for p in raw_dir.rglob("*") if p.suffix == ".txt" or p.name == "late.csv"]
        absent = [] if (raw_dir / "shop/late.csv").exists() else ["shop/late.csv"]
        return dataclasses.replace(make_cohort(), sources=checksums(raw_dir, paths), absent=absent)

    toy.cohort = cohort


@pytest.mark.parametrize(
    "name", ["more.txt", "new/1.txt", "part/2.txt", "part/empty/1.txt", "shop/late.csv"]
)
def test_a_file_that_comes_later_is_read(module, monkeypatch, name):
    monkeypatch.setattr(build, "SMALL", 0)
    toy, raw, home = module
    several(toy)
    for folder in ("part/empty", "shop"):
        (raw / folder).mkdir(parents=True)
    (raw / "part/1.txt").write_text("1")
    first = build.prepare("toylab.toy", raw, home)
    assert build.prepare("toylab.toy", raw, home) == first and toy.builds == [0]
    (raw / name).parent.mkdir(exist_ok=True)
    (raw / name).write_text("late")
    second = build.prepare("toylab.toy", raw, home)
    assert second != first and name in manifests.read(second)["sources"]
    assert build.prepare("toylab.toy", raw, home) == second and toy.builds == [0, 0]


def test_what_lies_beside_the_sources_builds_nothing(module, monkeypatch):
    monkeypatch.setattr(build, "SMALL", 0)
    toy, raw, home = module
    several(toy)
    (raw / "part").mkdir()
    (raw / "part/1.txt").write_text("1")
    first = build.prepare("toylab.toy", raw, home)
    inode = (first / "manifest.json").stat().st_ino
    for number, change in enumerate((Path.touch, Path.unlink), start=2):
        change(raw / "part/notes.md")  # all are looked for and hashed once, and nothing is built
        for _ in range(2):
            assert build.prepare("toylab.toy", raw, home) == first
        assert toy.builds == [0] * number
        assert (first / "manifest.json").stat().st_ino == inode
    (raw / "part/.notes.swp").touch()
    (raw / "part/1.txt").unlink()  # built data outlive any of their sources
    assert build.prepare("toylab.toy", raw, home) == first and len(toy.builds) == 3
    (raw / "file.txt").unlink()  # and what came since, if nothing can be built
    (raw / "part/2.txt").touch()
    assert build.prepare("toylab.toy", raw, home) == first and len(toy.builds) == 3


def test_stamps_of_before_folders_were_listed(module, monkeypatch):
    monkeypatch.setattr(build, "SMALL", 0)
    toy, raw, home = module
    first = build.prepare("toylab.toy", raw, home)
    old = json.loads((first / build.STAMPS).read_text())["files"]
    (first / build.STAMPS).write_text(json.dumps(old))
    for _ in range(2):
        assert build.prepare("toylab.toy", raw, home) == first
    assert toy.builds == [0, 0]  # hashed once more
    (first / build.STAMPS).write_text(json.dumps(old))
    (raw / "file.txt").unlink()
    assert build.prepare("toylab.toy", raw, home) == first


def test_missing_files_say_where_to_get_them(module):
    _, raw, home = module
    (raw / "file.txt").unlink()
    with pytest.raises(DataError) as error:
        build.prepare("toylab.toy", raw, home)
    assert error.value.lines() == [
        "m4: data error: raw/file.txt is missing",
        "m4: data error: toylab.toy: get file.txt from the toy shop",
    ]
    assert not home.exists()


def test_an_interrupted_build_leaves_nothing_that_looks_complete(module, monkeypatch):
    toy, raw, home = module
    monkeypatch.setattr(toy.toy_cohort, "make_cohort", lambda: make_cohort(make=interrupted))
    with pytest.raises(KeyboardInterrupt):
        build.prepare("toylab.toy", raw, home)
    assert [path.name for path in (home / "toy").iterdir()] == [".lock"]
    left(home / "toy", DEAD)  # what SIGKILL would leave
    monkeypatch.undo()
    folder = build.prepare("toylab.toy", raw, home)
    assert len(Store(folder, "test")) == 9
    assert sorted(path.name for path in (home / "toy").iterdir()) == [".lock", folder.name]


def test_a_second_process_waits_for_the_first_and_builds_nothing(module):
    toy, raw, home = module
    with ThreadPoolExecutor(3) as pool:  # each call opens the lock file for itself
        folders = {*pool.map(lambda _: build.prepare("toylab.toy", raw, home), range(3))}
    assert len(folders) == 1 and toy.builds == [0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_a_save_error_and_leaves_nothing(module, monkeypatch, code):
    _, raw, home = module

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(build.records, "write", fail)
    with pytest.raises(SaveError, match=f"toy: {os.strerror(code)} .building records"):
        build.prepare("toylab.toy", raw, home)
    assert [path.name for path in (home / "toy").iterdir()] == [".lock"]


def interrupted(patient):
    if patient == 42:
        raise KeyboardInterrupt
    return example(patient)


def test_folder_is_private_and_carries_the_licence(module):
    _, raw, home = module
    folder = build.prepare("toylab.toy", raw, home)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "LICENCE.txt").read_text().startswith("CC0\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("LICENCE.txt", "manifest.json", "records", "stamps.json")
    ]


def test_manifest_counts_equal_the_examples(built):
    manifest = json.loads((built / "manifest.json").read_text())
    numbers = {"train": range(40), "val": range(40, 51), "test": range(51, 60)}
    for split, summary in manifest["splits"].items():
        examples = [example(i) for i in numbers[split]]
        assert summary["rows"] == summary["patients"] == len(examples)
        assert sum(summary["patterns"].values()) == len(examples)
        for name in ("note", "static", "icd", "words", "xray", "ecg"):
            assert summary["present"][name] == sum(name in e["inputs"] for e in examples), name
        deaths = [e["targets"]["death"] for e in examples]
        assert summary["labels"]["death"] == {"known": [len(deaths)], "mean": [np.mean(deaths)]}
        pheno = np.array([e["targets"]["pheno"] for e in examples])
        assert summary["labels"]["pheno"]["known"] == (~np.isnan(pheno)).sum(0).tolist()
    nothing = sum(not example(i)["inputs"] for i in range(40))
    assert manifest["splits"]["train"]["patterns"]["0"] == nothing == 3
    cut = sum(len(example(i)["inputs"].get("vitals", {}).get("values", [])) > 4 for i in range(60))
    assert ["vitals: records cut to their last 4 rows", cut] in manifest["flow"]


def test_regression_scale_is_fitted_on_known_train_labels(train):
    los = [example(i)["targets"]["los"] for i in range(40)]
    logged = np.log1p([value for value in los if value is not None])
    task = train.spec.task("los")
    assert np.isclose(task.loc, logged.mean()) and np.isclose(task.scale, logged.std())
    assert train.spec.task("death").scale == 1.0


def test_validation_and_test_rows_never_reach_the_normalisers(built, tmp_path):
    def poisoned(patient):
        record = example(patient)
        if patient >= 40 and "vitals" in record["inputs"]:
            record["inputs"]["vitals"]["values"][:] = 1e6
            record["targets"]["los"] = 1e6
        return record

    clean = json.loads((built / "manifest.json").read_text())
    dirty = json.loads((build_into(tmp_path, make_cohort(poisoned)) / "manifest.json").read_text())
    assert dirty["normalisers"] == clean["normalisers"]
    assert dirty["schema"] == clean["schema"]
    assert dirty["splits"]["test"] != clean["splits"]["test"]  # the poison was there
    values = Store(tmp_path, "test").read(range(9))["vitals/values"]
    assert np.abs(values).max() < 10  # and is clipped to the training quantiles


def edit(change, split_start=40):
    def make(patient):
        record = example(patient)
        if patient == split_start + 5:
            record["inputs"]["vitals"] = {"values": np.ones((2, 2)), "times": np.arange(2.0)}
            record["inputs"]["icd"] = {"values": np.array([1])}
            change(record)
        return record

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["inputs"]["vitals"]["times"].__setitem__(0, np.nan), "1 times are not fin"),
        (lambda r: r["inputs"]["vitals"]["values"].__setitem__(0, np.inf), "2 values are not fin"),
        (lambda r: r["inputs"]["vitals"].update(times=np.zeros(3)), r"\(3,\) times for 2 rows"),
        (lambda r: r["inputs"]["vitals"].update(values=np.zeros((2, 3))), r"shape \(2, 3\)"),
        (lambda r: r["inputs"]["vitals"].pop("times"), r"has \['values'\], expected"),
        (lambda r: r["inputs"]["icd"].update(values=np.array([5])), "codes outside 0..4"),
        (lambda r: r["inputs"].update(notes={}), r"\['notes'\] are neither"),
        (lambda r: r["targets"].update(death=2.0), "death: a label that is no binary label"),
        (lambda r: r["targets"].update(pheno=[0, 1]), r"pheno: a label of shape \(2,\)"),
    ],
)
def test_a_bad_record_is_named_by_number(tmp_path, change, message):
    with pytest.raises(DataError, match=f"split val, record 6.*{message}") as error:
        build_into(tmp_path, make_cohort(edit(change)))
    assert len(error.value.args) == 1 and "\n" not in error.value.args[0]
    assert "1045" not in str(error.value)  # the patient's id


def test_rows_out_of_order_are_sorted_by_time(tmp_path):
    def change(record):
        record["inputs"]["vitals"] = {"values": [[1, 2], [3, 4]], "times": [5.0, 2.0]}

    store = Store(build_into(tmp_path, make_cohort(edit(change))), "val")
    rows = store.read([5])
    assert rows["vitals/times"][0].tolist() == [2, 5, 0, 0]
    assert rows["vitals/values"][0, 0, 0] >= rows["vitals/values"][0, 1, 0]


def test_a_patient_in_two_splits_or_an_empty_split_is_refused(tmp_path):
    def same_patients(patient):
        return {**example(patient), "patient": patient % 45}

    sizes = (("train", 40), ("val", 11), ("test", 1))
    with pytest.raises(DataError, match="6 patients are in both train and val"):
        build_into(tmp_path / "a", make_cohort(same_patients, sizes))
    with pytest.raises(DataError, match="split val has no records"):
        build_into(tmp_path / "b", make_cohort(sizes=(("train", 4), ("val", 0), ("test", 1))))


def test_same_cohort_gives_the_same_bytes(built, tmp_path):
    again = build_into(tmp_path, make_cohort())
    assert (again / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
    for path in built.rglob("*.array_record*"):
        assert (again / path.relative_to(built)).read_bytes() == path.read_bytes()


def test_no_tensorflow_no_output_and_no_litter(tmp_path):
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.data import toy_cohort
        from m4.data.store import Store
        from m4.data.loader import TrainLoader
        from pathlib import Path
        folder = toy_cohort.build_into(Path({str(tmp_path / "built")!r}), toy_cohort.make_cohort())
        TrainLoader(Store(folder, "train"), 8, seed=0).batch(0)
        bad = [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")]
        sys.exit(f"imported {{bad}}" if bad else 0)
    """
    litter = {name: tmp_path / name for name in ("HOME", "TMPDIR")}
    for path in litter.values():
        path.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **{name: str(path) for name, path in litter.items()}},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not [found for path in litter.values() for found in path.iterdir()]
