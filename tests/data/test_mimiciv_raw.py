"""MIMIC-IV's raw files: layouts, what is missing or damaged, interruption, memory."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest

from m4.data import csv_files
from m4.data.build import prepare
from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import release
from m4.data.store import Store
from m4.errors import DataError
from tests.data.mimiciv_toy import all_splits, examples, patch, raw_folder, write


@pytest.fixture
def raw(tmp_path):
    return raw_folder(tmp_path)


def test_layouts(tmp_path):
    """Folder names seen in the wild, plain csv, and the highest version wins."""
    assert release.find_root(tmp_path, demo=False) is None
    plain = write(tmp_path / "a", compress=False)  # hosp/ and icu/ directly under raw_dir
    assert release.find_root(plain, demo=False) == plain
    assert release.version(plain) == "unknown"
    (plain / "CHANGELOG.txt").write_text("# MIMIC-IV changelog\n\n## MIMIC-IV v3.1\n")
    assert release.version(plain) == "3.1"
    both = tmp_path / "b"
    write(both / "mimiciv" / "2.2")
    newer = write(both / "mimiciv" / "3.1")
    assert release.find_root(both, demo=False) == newer and release.version(newer) == "3.1"
    flat = write(tmp_path / "c" / "mimic-iv-2.0")
    assert release.find_root(tmp_path / "c", demo=False) == flat and release.version(flat) == "2.0"
    assert release.version(write(tmp_path / "e" / "mimiciv")) == "unknown"
    (tmp_path / "e" / "mimiciv" / "hosp" / "provider.csv.gz").touch()
    assert release.version(tmp_path / "e" / "mimiciv") == "2.2 or later"
    old = write(tmp_path / "d" / "mimiciv" / "latest")
    (old / "core").mkdir()
    assert release.version(old) == "1.x"
    (old / "hosp" / "admissions.csv.gz").rename(old / "core" / "admissions.csv.gz")
    assert mimiciv.missing_files(tmp_path / "d") == []


def test_demo_and_full_data_are_never_mixed_up(tmp_path):
    demo = write(tmp_path / "mimic-iv-demo-2.2")
    (line,) = mimiciv.missing_files(tmp_path)
    assert "no mimiciv/" in line and "is the demo" in line
    assert mimiciv.missing_files(tmp_path, demo=True) == []
    renamed = demo.rename(tmp_path / "mimiciv")
    (renamed / "demo_subject_id.csv").write_text("subject_id\n1\n")
    assert mimiciv.missing_files(tmp_path) != []
    assert mimiciv.missing_files(tmp_path, demo=True) == []


def test_missing_files_are_listed_one_a_line(raw):
    for name in ("icu/chartevents", "hosp/diagnoses_icd"):
        (raw / "mimiciv" / "2.2" / f"{name}.csv.gz").unlink()
    lines = mimiciv.missing_files(raw)
    assert len(lines) == 2
    assert "icu/chartevents.csv.gz" in lines[0] and "hosp/diagnoses_icd.csv.gz" in lines[1]
    assert mimiciv.missing_files(raw, modalities=("labs",), tasks=("ihm48",)) == []
    with pytest.raises(DataError, match="chartevents"):
        mimiciv.cohort(raw, seed=0)


def test_missing_files_needs_nothing_heavy():
    code = (
        "import sys; from m4.data.sets import mimiciv;"
        "mimiciv.spec(); mimiciv.missing_files('/no');"
        "heavy = {'jax', 'pyarrow', 'tensorflow_datasets', 'sklearn', 'scipy', 'grain'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_truncated_file_is_one_clear_line(raw):
    path = raw / "mimiciv" / "2.2" / "icu" / "chartevents.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])
    cohort = mimiciv.cohort(raw, seed=0)
    with pytest.raises(DataError) as caught:
        list(cohort.splits["train"]())
    (line,) = caught.value.lines()
    assert "chartevents.csv.gz: cut short or corrupt" in line and "\n" not in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("charttime,", "chart_time,", "charttime"),
        ("2150-01-01 12:00:00,2150-01-01 12:05:00,220045,80", "late,,220045,80", "malformed"),
        (",220045,90,90,bpm,0", ",220045", "malformed"),
    ],
)
def test_a_malformed_table_is_named_but_not_quoted(raw, old, new, message):
    patch(raw, "icu/chartevents", old, new)
    cohort = mimiciv.cohort(raw, seed=0)
    with pytest.raises(DataError, match=message) as caught:
        list(cohort.splits["train"]())
    text = "".join(caught.value.lines())
    assert "chartevents.csv.gz" in text
    assert "101" not in text.replace(str(raw), "") and "late" not in text.replace(str(raw), "")
    assert caught.value.__suppress_context__


def test_no_stay_left(raw):
    patch(raw, "hosp/patients", "\n1,", "\n901,")
    patch(raw, "hosp/patients", "\n3,", "\n903,")
    with pytest.raises(DataError, match="no ICU stay"):
        mimiciv.cohort(raw, seed=0)


def test_linked_data_that_is_not_there_is_one_line_each(raw):
    lines = mimiciv.missing_files(raw, modalities=("vitals", "notes", "cxr", "ecg_measures"))
    assert len(lines) == 4  # Note, CXR-JPG, ECG; embeddings of the X-rays
    assert "mimic-iv-note" in lines[0] and "embeddings.cxr" in lines[3]
    (raw / "mimiciv" / "2.2" / "demo_subject_id.csv").write_text("subject_id\n1\n")
    options = {"modalities": ("vitals", "notes", "cxr", "ecg_measures"), "demo": True}
    assert mimiciv.missing_files(raw, **options) == []  # the demo has none of them: absent
    _, cohort = examples(raw, **options)
    assert cohort.notes == "MIMIC-IV demo 2.2, no MIMIC-IV-Note, no MIMIC-CXR-JPG, no MIMIC-IV-ECG"
    assert cohort.spec.modality("notes").shape == (5, 768)
    for split in cohort.splits.values():
        assert all(e["inputs"].keys() <= {"vitals"} for e in split())


def test_an_interrupted_build_goes_on_with_the_tables_it_has_read(raw, tmp_path, monkeypatch):
    seed = next(s for s in range(200) if all_splits(raw, s))
    options = {"split_by": "stay"}
    whole = prepare("mimiciv", raw, tmp_path / "a", seed=seed, options=options)
    read = []
    stream = csv_files.stream

    def counted(path, columns):
        read.append(path.name)
        yield from stream(path, columns)
        if path.name == "labevents.csv.gz" and read.count(path.name) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(csv_files, "stream", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare("mimiciv", raw, tmp_path / "b", seed=seed, options=options)
    home = tmp_path / "b" / "mimiciv"
    (scratch,) = home.glob(".partial-*")
    assert scratch.stat().st_mode & 0o077 == 0
    (kept,) = scratch.glob("kept-*")
    assert not [*scratch.glob("data")] and (kept / "chartevents.done").is_file()
    folder = prepare("mimiciv", raw, tmp_path / "b", seed=seed, options=options)
    assert read.count("chartevents.csv.gz") == 1 and read.count("labevents.csv.gz") == 2
    assert sorted(path.name for path in home.iterdir()) == [".lock", folder.name]
    for split in ("train", "val", "test"):
        first, second = (Store(f, split).read([0]) for f in (whole, folder))
        assert all(np.array_equal(first[key], second[key]) for key in first)
    assert Store(whole, "train").manifest["flow"] == Store(folder, "train").manifest["flow"]


@pytest.mark.parametrize("change", [os.unlink, lambda path: os.truncate(path, 16)])
def test_events_that_a_power_cut_has_lost_are_read_again(raw, tmp_path, monkeypatch, change):
    """A table counts as read only while its files are as long as they were."""
    options = {"modalities": ("vitals", "labs"), "tasks": ("los",)}
    read = []
    stream = csv_files.stream
    monkeypatch.setattr(csv_files, "stream", lambda *a: read.append(a[0].name) or stream(*a))

    def starts():
        cohort = mimiciv.cohort(raw, seed=0, scratch=tmp_path, **options)
        return [*cohort.splits.values()]

    def examples_of(splits):
        return repr([example["inputs"] for start in splits for example in start()])

    first = starts()
    before = examples_of(first)
    change(next(tmp_path.glob("kept-*/vitals-chartevents-*")))
    with pytest.raises(DataError, match="was removed or cut while it was needed"):
        examples_of(first)  # not fewer events, in the same process
    second = starts()
    read.clear()
    assert examples_of(second) == before and read == ["chartevents.csv.gz"]


@pytest.mark.parametrize("change", ["an earlier entry", "another patient"])
def test_a_build_that_goes_on_reads_stays_that_changed(raw, tmp_path, change):
    options = {"modalities": ("vitals", "labs"), "tasks": ("los",)}

    def events(scratch):
        cohort = mimiciv.cohort(raw, seed=0, scratch=scratch, **options)
        found = [e["inputs"] for start in cohort.splits.values() for e in start()]
        return repr(sorted(map(repr, found)))

    lab = "5,3,,4,50971,,2152-01-01 02:00:00,,4,4,mEq/L,3,5,,ROUTINE,"
    patch(raw, "hosp/labevents", "4,1,,3,", f"{lab}\n4,1,,3,")
    before = events(tmp_path / "scratch")
    if change == "an earlier entry":  # of the same length, so no window ends at another hour
        times = "2150-01-01 10:00:00,2150-01-05 10:00:00"
        patch(raw, "icu/icustays", times, times.replace(" 10:", " 09:"))
    else:  # in the same split, with a table of the same size and time stamp
        for table in ("icu/icustays", "hosp/admissions", "hosp/patients"):
            patch(raw, table, "\n1,", "\n16,")
    after = events(tmp_path / "scratch")
    assert after == events(tmp_path / "afresh") != before


PEAK = """
import re, sys
from m4.data.sets import mimiciv
cohort = mimiciv.cohort(sys.argv[1], seed=0, modalities=("vitals",), tasks=("ihm48",))
print(sum(1 for split in cohort.splits.values() for _ in split()))
# Not ru_maxrss, which a process inherits from the one that started it.
print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_table(raw, tmp_path):
    """Peak memory over 50 MB and over 200 MB of chartevents, most of it other items."""
    path = raw / "mimiciv" / "2.2" / "icu" / "chartevents.csv.gz"
    head, *body = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    others = "".join(body) + "1,101,11,,2150-01-01 12:00:00,,226730,7,7,cm,0\n" * 200
    block = gzip.compress((others * 500).encode())  # 5 MB; gzip members may be concatenated
    peaks = []
    for copies in (10, 40):
        path.write_bytes(gzip.compress(head.encode()) + block * copies)
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(raw)],
            capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        rows, peak = map(int, run.stdout.split())
        assert rows == 3
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 40, peaks
    assert peaks[1] < 400, peaks
