import csv
import gzip

from m4.data.sets import mimiciv
from tests.data import mimiciv_toy as toy
from tests.timing import __main__ as timing
from tests.timing import build


def test_copies_have_their_own_patients(tmp_path):
    root = toy.write(tmp_path / "a" / "mimic-iv-demo-2.2")
    rows = build.enlarge(root, tmp_path / "b" / "mimic-iv-demo-0.0", 3)
    # 14 charted, 4 laboratory and 4 infusion rows
    assert rows == 3 * (14 + 4 + 4)
    with open(tmp_path / "b/mimic-iv-demo-0.0/hosp/labevents.csv", newline="") as handle:
        found = [(r["subject_id"], r["hadm_id"], r["comments"]) for r in csv.DictReader(handle)]
    assert found[4] == (str(1 + build.SHIFT), "", "two\nlines")
    cohorts = [mimiciv.cohort(tmp_path / f, seed=0, demo=True) for f in "ab"]
    sizes = [sum(1 for start in c.splits.values() for _ in start()) for c in cohorts]
    assert sizes[1] == 3 * sizes[0]
    with gzip.open(root / "icu/icustays.csv.gz", "rt") as handle:
        assert "11" in handle.read()  # the source is left alone


def test_verdict():
    row = {"times": 1, "event_rows": 900, "records": 3, "cpu_seconds": 3, "peak_mib": 2047.0}
    assert "300" in build.table([row]) and "2,048 MiB: met" in build.table([row])
    assert "MISSED" in build.table([row | {"peak_mib": 2049.0}])


def test_no_demo_is_one_line(tmp_path, capsys):
    assert timing.main(["build", f"--raw_dir={tmp_path}"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
