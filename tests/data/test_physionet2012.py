import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from m4.data import aggregate, build
from m4.data.sets import physionet2012
from m4.data.sets.physionet2012.archive import STATICS
from m4.data.store import Store
from m4.errors import ConfigError, DataError

HEADER = "Time,Parameter,Value\n"
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"


def stay(record, rows=()):
    statics = [("RecordID", record), ("Age", 60), ("Gender", 1), ("Height", -1), ("ICUType", 3)]
    lines = [f"00:00,{name},{value}" for name, value in [*statics, ("Weight", -1)]]
    return HEADER + "\n".join([*lines, *rows]) + "\n"


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{path.name[:5]}/{name}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def folder(tmp_path):
    """A tiny raw folder: 30 stays in A, 6 in B, all alike; tests overwrite what they need."""
    folder = tmp_path / "physionet2012"
    folder.mkdir()
    for letter, first, number in (("a", 100, 30), ("b", 500, 6)):
        ids = range(first, first + number)
        files = {str(i): stay(i, ["01:30,HR,80", "02:00,HR,82"]) for i in ids}
        archive(folder / f"set-{letter}.tar.gz", files)
        rows = "".join(
            f"{i},5,{i % 14},{i % 20 - 1},{i % 20 - 1 if i % 2 else -1},{i % 2}\n" for i in ids
        )
        (folder / f"Outcomes-{letter}.txt").write_text(OUTCOMES + rows)
    return folder


def examples(folder, split="test", **options):
    cohort = physionet2012.cohort(folder.parent, seed=0, **options)
    return list(cohort.splits[split]()), dict(cohort.flow)


def test_cleaning_is_counted(folder):
    rows = [
        "00:10,HR,0",  # implausible
        "00:10,pH,735",
        "00:20,HR,70",
        "00:20,HR,75",  # replaces the 70
        "00:20,Temp,37",
        "00:05,HR,60",  # out of order
        "00:30,,5",  # no parameter
        "00:30,Mood,5",
        "xx:30,HR,99",
        "00:40,HR,NaN",
        "49:00,HR,99",
        "01:00,Weight,80",
        "02:00,Weight,85",
        "a,b",  # wrong shape
        "03:00,GCS,15",
    ]
    archive(folder / "set-b.tar.gz", {"500": stay(500, rows)})
    (only,), flow = examples(folder)
    vitals = only["inputs"]["vitals"]
    np.testing.assert_allclose(vitals["times"], [5 / 60, 20 / 60])
    np.testing.assert_array_equal(vitals["values"], [[60, *[np.nan] * 5], [75, *[np.nan] * 4, 37]])
    assert only["inputs"]["gcs"]["values"].tolist() == [[15]]
    assert [*only["inputs"]] == ["vitals", "gcs", "demographics"]
    np.testing.assert_array_equal(
        only["inputs"]["demographics"]["values"], [60, 1, np.nan, 80, 0, 0, 1, 0]
    )
    counted = {step.removeprefix("set b: "): n for step, n in flow.items() if n}
    assert counted == {
        "stays": 1,
        "rows of another shape, dropped": 1,
        "rows": 19,  # 6 statics and 15 above, without RecordID and the malformed one
        "rows without a readable time within 48 h, or a value, dropped": 3,
        "rows of unknown parameters, dropped": 2,
        "static descriptors and weights recorded as unknown (-1)": 2,
        "HR outside 10 to 300, dropped": 1,
        "pH outside 6.5 to 8, dropped": 1,
        "earlier values at the same time, replaced": 1,
        "outcome rows without a stay": 5,
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("500,1,7,8,-1,1", {"death": None, "los": 8, "los_over_7d": 1, "sofa7": 1}),
        ("500,1,7,0,-1,0", {"death": 0, "los": None, "los_over_7d": None, "sofa7": 1}),
        ("500,1,7,1,-1,0", {"death": 0, "los": 1, "los_over_7d": 0, "sofa7": 1}),
        ("500,1,7,-1,-1,1", {"death": None, "los": None, "los_over_7d": None, "sofa7": 1}),
        ("500,1,6,7,-1,0", {"death": 0, "los": 7, "los_over_7d": 0, "sofa7": 0}),
        ("500,1,-1,-1,-1,0", {"death": 0, "los": None, "los_over_7d": None, "sofa7": None}),
        ("500,1,6,8,12,1", {"death": None, "los": 8, "los_over_7d": 1, "sofa7": 0}),
        ("500,1,6,10,0,0", {"death": None, "los": 10, "los_over_7d": 1, "sofa7": 0}),
        ("500,1,6,19,2,1", {"death": 1, "los": 3, "los_over_7d": 0, "sofa7": 0}),
        ("500,1,6,10,9,1", {"death": 1, "los": 10, "los_over_7d": 1, "sofa7": 0}),
        ("500,1,6,10,300,0", {"death": 0, "los": 10, "los_over_7d": 1, "sofa7": 0}),
        ("501,1,6,7,-1,0", dict.fromkeys(("death", "los", "los_over_7d", "sofa7"))),
    ],
)
def test_labels(folder, row, expected):
    archive(folder / "set-b.tar.gz", {"500": stay(500, ["47:30,HR,80"])})
    (folder / "Outcomes-b.txt").write_text(f"{OUTCOMES}{row}\n")
    (only,), flow = examples(folder)
    assert only["targets"] == expected
    assert flow["set b: stays without an outcome row"] == row.startswith("501")
    settled = [step for step in flow if step.startswith("set b: records:")]
    odd = ("500,1,6,8,12,1", "500,1,6,10,0,0", "500,1,6,19,2,1", "500,1,7,8,-1,1", "500,1,7,0,-1,0")
    assert len(settled) == (row in (*odd, "500,1,7,-1,-1,1"))


def test_records_that_contradict_themselves(folder):
    rows = ["01:00,FiO2,40", "02:00,FiO2,0.5", "03:00,FiO2,5", "00:00,Gender,0", "00:00,Age,60"]
    archive(folder / "set-b.tar.gz", {"500": stay(500, rows), "501": stay(502)})
    first, second = examples(folder)[0]
    flow = examples(folder)[1]
    np.testing.assert_allclose(first["inputs"]["ventilation"]["values"][:, 0], [0.4, 0.5])
    assert np.isnan(first["inputs"]["demographics"]["values"][1])  # woman and man
    assert first["inputs"]["demographics"]["values"][0] == 60
    assert first["targets"]["death"] == 0 and {*second["targets"].values()} == {None}
    counted = {step.removeprefix("set b: "): n for step, n in flow.items() if n}
    assert counted["stays with two values of Gender, unknown"] == 1
    assert counted["stays whose record names another stay, no labels"] == 1
    assert counted["FiO2 in percent, read as a fraction"] == 1
    assert counted["FiO2 outside 0.21 to 1, dropped"] == 1


@pytest.mark.parametrize(
    ("death", "days", "lived", "last", "told"),
    [
        (0, 0, 0, 30.0, (-1, -1)),  # known bad: death 0, for its length was judged first
        (0, 0, 0, 10.0, (-1, 0)),
        (0, 0, 9, 30.0, (0, -1)),
        (1, 9, 3, 40.0, (1, 4)),
        (1, 9, 0, 60.0, (1, -1)),
        (0, 6, 19, 47.0, (0, 6)),
    ],
)
def test_an_outcome_is_settled_whatever_its_length(death, days, lived, last, told):
    names = ("In-hospital_death", "Length_of_stay", "Survival")
    outcome = dict(zip(names, (death, days, lived), strict=True))
    list(physionet2012._settle(outcome, last))
    assert tuple(outcome[name] for name in names[:2]) == told


def headers(folder, *parts):
    """Set B as an archive of such blocks, ended as archives are."""
    with gzip.open(folder / "set-b.tar.gz", "wb") as file:
        file.write(b"".join(parts) + bytes(1024))


def block(kind, size=0, content=b"", name="500.txt"):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size or len(content)
    return member.tobuf() + content.ljust(-(-len(content) // 512) * 512, b"\0")


def test_an_archive_of_headers_alone_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(physionet2012.archive, "MAX_HEADERS", 50)
    headers(folder, block(tarfile.DIRTYPE) * 51)
    with pytest.raises(DataError, match="set-b.tar.gz: more than 50 headers of files and folders"):
        examples(folder)


def test_an_archive_that_unpacks_to_too_much_is_refused(folder, monkeypatch):
    text = block(tarfile.REGTYPE, content=b"x" * 2000, name="notes")
    headers(folder, text * 100)
    monkeypatch.setattr(physionet2012.archive, "MAX_SET", 100_000)
    with pytest.raises(DataError, match="set-.*: more than 50000 files or 100000 bytes"):
        examples(folder)


PAX = b"13 comment=x\n"
HOLES = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
BACK = b"18 size=-00005120\n"


@pytest.mark.parametrize(
    "parts",
    [
        block(tarfile.XHDTYPE, content=PAX) * 3000 + block(tarfile.REGTYPE),
        block(tarfile.GNUTYPE_SPARSE),
        block(tarfile.XHDTYPE, content=HOLES) + block(tarfile.REGTYPE, content=b"9" * 512),
        block(tarfile.XHDTYPE, content=BACK) + block(tarfile.REGTYPE, name="notes"),
    ],
    ids=["pax", "sparse", "pax sparse", "backwards"],
)
def test_an_archive_whose_headers_lead_astray_is_damaged(folder, parts):
    headers(folder, parts)
    with pytest.raises(DataError, match="set-b.tar.gz: the archive is damaged after record"):
        examples(folder)


def test_what_is_no_file_in_an_extracted_folder_is_not_waited_for(folder, monkeypatch):
    with tarfile.open(folder / "set-b.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    (folder / "set-b.tar.gz").unlink()
    monkeypatch.setattr(physionet2012.archive, "MAX_RECORDS", 5)
    with pytest.raises(DataError, match="more than 5 files"):
        [*physionet2012.archive._contents(folder, "b")]
    monkeypatch.setattr(physionet2012.archive, "MAX_RECORD", 5)
    with pytest.raises(DataError, match="set-b, file 1: cannot be read .* bytes, the limit is 5"):
        [*physionet2012.archive._contents(folder, "b")]
    (folder / "set-b/500.txt").unlink()
    os.mkfifo(folder / "set-b/500.txt")
    with pytest.raises(DataError, match="set-b, file 1: cannot be read .is no regular file"):
        [*physionet2012.archive._contents(folder, "b")]
    os.mkfifo(folder / "set-b.tar.gz")
    with pytest.raises(DataError, match="set-b.tar.gz: the archive is damaged"):
        [*physionet2012.archive._contents(folder, "b")]


def test_extracted_folders_give_the_same_examples(folder):
    before, _ = examples(folder)
    with tarfile.open(folder / "set-b.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    (folder / "set-b.tar.gz").unlink()
    after, _ = examples(folder)
    assert [e["patient"] for e in after] == [e["patient"] for e in before]
    np.testing.assert_equal(after, before)
    files = physionet2012.cohort(folder.parent, seed=0).sources
    assert "physionet2012/set-b/500.txt" in files and "physionet2012/set-a.tar.gz" in files


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("\n", "\r"), ("Time", "\ufeffTime")])
def test_what_spreadsheets_make_of_a_text_changes_nothing(folder, change):
    before, _ = examples(folder)
    files = {str(i): stay(i, ["01:30,HR,80", "02:00,HR,82"]) for i in range(500, 506)}
    archive(folder / "set-b.tar.gz", {i: text.replace(*change) for i, text in files.items()})
    np.testing.assert_equal(examples(folder)[0], before)


def test_new_stays_that_are_not_read_are_told(folder):
    (folder / "777.txt").write_text(stay(777))
    (folder / "set-b").mkdir()
    told = physionet2012.new(folder.parent, {}, {}).warnings
    assert [text.partition(": ")[2] for text in told] == [
        "1 files *.txt beside the sets, not read",
        "not read, as set-b.tar.gz lies beside it",
    ]
    for path in folder.glob("*.tar.gz"):
        path.unlink()
    (folder / "set-b").rmdir()
    (folder / "777 (1).txt").write_text(stay(777))
    (folder / "Outcomes-a.txt").unlink()
    told = physionet2012.new(folder.parent, {}, {}).warnings
    assert [text.partition(": ")[2] for text in told] == [
        "1 files *.txt whose name is no RecordID, not read"
    ]


def test_train_and_val_share_set_a(folder):
    train, val = (
        {e["patient"] for e in examples(folder, split, val_fraction=0.3)[0]}
        for split in ("train", "val")
    )
    assert train and val and not train & val
    assert train | val == {*range(100, 130)}


def test_stay_without_measurements_is_kept(folder):
    archive(folder / "set-b.tar.gz", {"500": HEADER + "00:00,RecordID,500\n", "501": stay(501)})
    found, _ = examples(folder)
    assert [e["patient"] for e in found] == [500, 501]
    assert "vitals" not in found[0]["inputs"]
    assert np.isnan(found[0]["inputs"]["demographics"]["values"]).all()
    assert found[0]["targets"]["death"] == 0
    assert found[0]["groups"] == {"sex": None, "age_band": "", "icu_type": None}
    known = {"sex": "male", "age_band": "50 to under 65", "icu_type": "medical"}
    assert found[1]["groups"] == known


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated_archive(folder, share):
    path = folder / "set-b.tar.gz"
    ids = range(500, 600)
    files = {str(i): stay(i, [f"01:{m:02},HR,{(i * m) % 90 + 20}" for m in range(60)]) for i in ids}
    archive(path, files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"set-b.tar.gz: the archive is damaged after record \d+"):
        examples(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set-b": {"500": stay(500, ["01:00,HR,abc"])}}, "record 1: a value is not a number"),
        ({"set-b": {"1": stay(1), "2": stay(2, ["01:00,HR,1x"])}}, "record 2: a value is not"),
        ({"set-b": {"500": "<html>not found</html>"}}, "file 1: not a record of the challenge"),
        ({"set-b": {"500": HEADER.replace("Value", "Value,Unit")}}, "file 1: not a record of the"),
        ({"set-b": {"1": stay(1, ["01:00,<stay>,0"]), "2": stay(2)}}, "parameter is called <stay>"),
        ({"set-b": {"500": stay(500), "d/500": stay(500)}}, "1 records come twice"),
        ({"set-b": {"500": stay(500), "0501": stay(501), "501": stay(501)}}, "leading zeros"),
        ({"Outcomes-b": OUTCOMES + "0500,1,1,1,1,0\n"}, "line 2: 'RecordID' has leading zeros"),
        ({"set-b": {str(2**63): stay(5)}}, "its name is beyond"),
        ({"Outcomes-b": "RecordID,SOFA\n500,1\n"}, "Outcomes-b.txt: no column In-hosp"),
        (
            {"Outcomes-b": f"{OUTCOMES}500,1,1\n"},
            "Outcomes-b.txt, line 2: not as long as the header",
        ),
        ({"Outcomes-b": OUTCOMES + "500,1,1,1,1,0\n" * 2}, "line 3: this record came before"),
    ],
)
def test_damaged_files_end_in_one_clear_line(folder, change, message):
    for name, content in change.items():
        if name == "set-b":
            archive(folder / "set-b.tar.gz", content)
        else:
            (folder / f"{name}.txt").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        examples(folder)
    assert len(error.value.args) == 1 and "\n" not in error.value.args[0]
    assert "500" not in error.value.args[0] and "abc" not in error.value.args[0]


def test_missing_files_are_all_named(tmp_path):
    lines = physionet2012.missing_files(tmp_path)
    assert len(lines) == 4
    for line, name in zip(lines, ("set-a", "Outcomes-a", "set-b", "Outcomes-b"), strict=True):
        assert name in line and "missing" in line


def test_fetch_verifies_and_leaves_complete_files_alone(tmp_path, monkeypatch):
    online = {f"{stem}-{x}{end}": f"{stem}{x}".encode() for x in "ab" for stem, end in NAMES}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in online.items()}
    asked = []

    def download(name):
        asked.append(name)
        listing = "".join(f"{value} {key}\n" for key, value in sums.items())
        return listing.encode() if name == "SHA256SUMS.txt" else online[name]

    monkeypatch.setattr(physionet2012, "_get", download)
    folder = tmp_path / "physionet2012"
    folder.mkdir()
    (folder / "set-a.tar.gz").write_bytes(b"mine")
    sums["Outcomes-b.txt"] = "0" * 64
    with pytest.raises(DataError, match="Outcomes-b.txt: checksum differs"):
        physionet2012.download(tmp_path)
    assert not (folder / "Outcomes-b.txt").exists()
    sums["Outcomes-b.txt"] = hashlib.sha256(online["Outcomes-b.txt"]).hexdigest()
    physionet2012.download(tmp_path)
    assert (folder / "set-a.tar.gz").read_bytes() == b"mine" and "set-a.tar.gz" not in asked
    assert (folder / "Outcomes-b.txt").read_bytes() == online["Outcomes-b.txt"]
    assert not physionet2012.missing_files(tmp_path)
    asked.clear()
    physionet2012.download(tmp_path)
    assert not asked


NAMES = (("set", ".tar.gz"), ("Outcomes", ".txt"))


def test_options(folder):
    spec = physionet2012.spec(modalities=("gcs", "vitals"), tasks=("death",))
    assert spec.modality_names == ("vitals", "gcs") and spec.task_names == ("death",)
    found, _ = examples(folder, modalities=("vitals",), tasks=("los",))
    assert [*found[0]["inputs"]] == ["vitals"] and [*found[0]["targets"]] == ["los"]
    with pytest.raises(ConfigError) as error:
        physionet2012.spec(modalities=("vital",), tasks=("dead",), val_fraction=1.0)
    assert len(error.value.args) == 3 and "not in vitals, " in error.value.args[0]


def test_import_is_light():
    code = (
        "import sys, m4.data.sets.physionet2012 as p; p.spec(); p.missing_files('.'); "
        "sys.exit(str({'jax', 'flax', 'tensorflow_datasets', 'pyarrow'} & {*sys.modules} or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "\n", done.stderr


# Published presence over the 8,000 stays of the two sets. What is at hand may be a part of set B,
# so shares may differ by sampling: five standard errors of 5,980 stays, plus what cleaning drops.
PRESENCE = {
    "vitals": 0.984, "chemistry": 0.985, "haematology": 0.985, "gcs": 0.984, "urine": 0.973,
    "blood_gas": 0.765, "invasive_pressure": 0.702, "ventilation": 0.698, "lactate": 0.550,
    "liver": 0.523, "cardiac_markers": 0.274, "cholesterol": 0.081,
}  # fmt: skip


def test_presence_of_the_groups(physionet):
    manifest = json.loads((physionet / "manifest.json").read_text())
    splits = manifest["splits"].values()
    rows = sum(split["rows"] for split in splits)
    for name, expected in PRESENCE.items():
        share = sum(split["present"][name] for split in splits) / rows
        error = (expected * (1 - expected) / rows) ** 0.5
        assert abs(share - expected) < 5 * error * (1 - rows / 8001) ** 0.5 + 0.0015, name
    assert all(split["present"]["demographics"] == split["rows"] for split in splits)


def test_real_counts(physionet, raw_dir):
    manifest = json.loads((physionet / "manifest.json").read_text())
    splits, flow = manifest["splits"], dict(map(tuple, manifest["flow"]))
    assert splits["train"]["rows"] + splits["val"]["rows"] == flow["set a: stays"] == 4000
    for letter, names in (("a", ("train", "val")), ("b", ("test",))):
        outcomes = np.genfromtxt(
            raw_dir / "physionet2012" / f"Outcomes-{letter}.txt", delimiter=",", names=True
        )
        labels = [(splits[name]["labels"], splits[name]["rows"]) for name in names]
        deaths = sum(label["death"]["mean"][0] * rows for label, rows in labels)
        assert round(deaths) == outcomes["Inhospital_death"].sum()
        for task, column in (("los", "Length_of_stay"), ("sofa7", "SOFA")):
            known = sum(label[task]["known"][0] for label, _ in labels)
            assert known == (outcomes[column] >= 0).sum()
    cut = sum(n for step, n in flow.items() if "records cut" in step)
    assert 0 < cut < 0.002 * 12 * sum(split["rows"] for split in splits.values())


def test_real_values_survive_the_whole_way(physionet, raw_dir):
    store = Store(physionet, "train")
    assert store.spec.modality("vitals").features[0] == "HR"
    rows = store.read([0])
    record = rows["patient"][0]
    with tarfile.open(raw_dir / "physionet2012" / "set-a.tar.gz") as tar:
        text = tar.extractfile(f"set-a/{record}.txt").read().decode()
    hr = [line.split(",") for line in text.split("\n") if ",HR," in line]
    fitted = store.manifest["normalisers"]["vitals"][0]
    observed = rows["vitals/observed"][0, :, 0]
    z = np.array([float(value) for *_, value in hr])
    z = ((z - fitted["mean"]) / fitted["std"]).clip(fitted["low"], fitted["high"])
    np.testing.assert_allclose(rows["vitals/values"][0, observed, 0], z, atol=1e-5)
    hours = [int(time[:2]) + int(time[3:]) / 60 for time, *_ in hr]
    np.testing.assert_allclose(rows["vitals/times"][0, observed], hours, atol=1e-5)


def test_aggregates_rank_deaths(physionet):
    """A sanity check of the whole path: worst GCS and age alone must separate clearly."""
    from sklearn.metrics import roc_auc_score

    store = Store(physionet, "test")
    table, names = aggregate.table(store, include=("gcs", "demographics"))
    label = store.read(range(len(store)))["y/death"][:, 0]
    low_gcs = -np.nan_to_num(table[:, names.index("gcs/GCS/last")])
    age = table[:, names.index("demographics/Age")]
    assert roc_auc_score(label, low_gcs) > 0.65
    assert roc_auc_score(label, age) > 0.58


def test_every_range_holds_a_known_variable():
    variables = {v for _, names in physionet2012.GROUPS.values() for v in names}
    assert {*physionet2012.RANGES} == variables | {*STATICS}
    assert len(variables) == 36
    assert build.fingerprint({"a": 1}, {}) != build.fingerprint({"a": 2}, {})
