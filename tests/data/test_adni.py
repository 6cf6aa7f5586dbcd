"""ADNI in Flex-MoE's layout: joins, gaps, leaks, splits, and damaged files."""

import json
import shutil

import numpy as np
import pytest

from m4 import config as configs
from m4.data import build, fake
from m4.data.cohort import patient_number
from m4.data.sets import adni
from m4.data.store import Store
from m4.errors import ConfigError, DataError
from m4.main import main
from m4.run.setup import make_setup

pytest.importorskip("h5py", reason="h5py is not installed (extra: adni)")
pytest.importorskip("nibabel", reason="nibabel is not installed (extra: adni)")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    fake.write("adni", folder, patients=80)
    return folder


def subjects(root, **options):
    found = adni.cohort(root, seed=0, **options)
    return {e["patient"]: (name, e) for name in found.splits for e in found.splits[name]()}, found


def test_tables_are_joined_by_subject_and_gaps_stay(raw):
    everyone, found = subjects(raw)
    spec = found.spec
    assert spec.modality("clinical").features == ("AGE", "FEMALE_True")  # PTCOGBEG tells too much
    assert spec.modality("image").features == ("ST1CV", "ST2TA", "ST3SV")  # no OVERALLQC
    lists = json.loads((raw / "adni" / "PTID_splits.json").read_text())
    who = lists["testing"][0]
    assert everyone[patient_number(who)][0] == "test"
    images = [
        e["inputs"]["image"]["values"] for _, e in everyone.values() if "image" in e["inputs"]
    ]
    assert np.mean(images) < 4  # the scan of 2020; that of 2019 has 9 more
    tau = [e["inputs"]["biospecimen"]["values"][1] for _, e in everyone.values()
           if "biospecimen" in e["inputs"]]  # fmt: skip
    assert 0.5 < np.isnan(tau).mean() < 0.8
    flow = dict(found.flow)
    assert flow["subjects with one diagnosis"] == 80
    assert all(40 < flow[f"with {name}"] < 80 for name in adni.MODALITIES)


def test_variants_are_chosen_in_training_subjects(raw, tmp_path):
    everyone, found = subjects(raw, modalities=("genomic",), variants=3)
    names = found.spec.modality("genomic").features
    rows = [e["inputs"]["genomic"]["values"] for _, e in everyone.values()]
    _, whole = subjects(raw, modalities=("genomic",))
    parts = {name: [*whole.splits[name]()] for name in ("train", "test")}
    train = np.stack([e["inputs"]["genomic"]["values"] for e in parts["train"]])
    best = np.sort(np.argsort(-np.nanvar(train, 0))[:3])
    assert [int(name) for name in names] == best.tolist() and np.shape(rows) == (len(rows), 3)


def test_volumes_are_unpacked_and_scaled_on_training_scans(raw):
    options = {"image": "volume", "modalities": ("image",), "volume": (6, 5, 4, 1)}
    everyone, _ = subjects(raw, **options)
    train = [e["inputs"]["image"]["values"] for name, e in everyone.values() if name == "train"]
    inside = np.stack(train)[:, 1:-1, 1:-1, 1:-1]
    assert abs(inside.mean()) < 1e-5 and abs(inside.std() - 1) < 1e-5
    background = {float(v[0, 0, 0, 0]) for v in train}
    assert len(background) == 1 and background.pop() < 0  # -mean / std, as in the release
    with pytest.raises(DataError, match="do not belong together"):
        adni.cohort(raw, seed=0, **options | {"volume": (6, 5, 5, 1)})


def test_records_that_contradict_each_other(raw, tmp_path):
    import h5py

    root = tmp_path / "adni"
    shutil.copytree(raw / "adni", root)
    people = [row.split(",")[0] for row in (root / "label.csv").read_text().splitlines()[1:]]
    before, _ = subjects(tmp_path)
    torn, twice = people[0], next(
        who for who in people[1:] if "clinical" in before[patient_number(who)][1]["inputs"]
    )  # fmt: skip

    def add(file, *lines):
        with open(root / file, "a", newline="") as handle:
            handle.write("".join(f"{line}\r\n" for line in lines))

    diagnosis = int((root / "label.csv").read_text().splitlines()[1].split(",")[1])
    add("label.csv", f"{torn},{diagnosis % 3 + 1}", f"{people[1]},")
    with pytest.raises(DataError, match="line 83: DIAGNOSIS"):
        adni.cohort(tmp_path, seed=0)
    lines = (root / "label.csv").read_text().splitlines()[:-1]
    (root / "label.csv").write_text("\n".join([*lines, lines[2]]) + "\n")  # twice the same: fine
    add("clinical/clinical_merged.csv", f"{twice},999,2000,True")
    add("image/UCSFFSX7_01Jan2025.csv", f"{people[2]},2030-01-01,-4,2,3,Pass")
    with h5py.File(root / "genomic/genomic_merged.h5ad", "a") as file:
        file["X"][3, 1:3] = (-1, 9)
    after, found = subjects(tmp_path)
    flow = dict(found.flow)
    assert patient_number(torn) not in after and len(after) == len(before) - 1
    assert "clinical" not in after[patient_number(twice)][1]["inputs"]
    sizes = after[patient_number(people[2])][1]["inputs"]["image"]["values"]
    np.testing.assert_array_equal(sizes, [np.nan, 2, 3])
    assert flow["subjects with two diagnoses, left out"] == 1
    assert flow["clinical: subjects whose rows differ, without it"] == 1
    assert flow["image: sizes of -1 or -4, gaps"] == 1
    assert flow["genomic: genotypes outside 0 to 2, gaps"] == 2


def test_a_build_is_renewed_when_the_split_comes_or_changes(raw, tmp_path):
    root, options = tmp_path / "adni", {"modalities": ("clinical",)}
    shutil.copytree(raw / "adni", root)
    lists = json.loads((root / "PTID_splits.json").read_text())
    (root / "PTID_splits.json").unlink()
    built = [build.prepare("adni", tmp_path, tmp_path / "d", options=options)]
    for a, b in (("training", "testing"), ("testing", "training")):
        turned = lists | {"training": lists[a], "testing": lists[b]}
        (root / "PTID_splits.json").write_text(json.dumps(turned))
        built.append(build.prepare("adni", tmp_path, tmp_path / "d", options=options))
        assert build.prepare("adni", tmp_path, tmp_path / "d", options=options) == built[-1]
    assert len({*built}) == 3
    assert len(Store(built[1], "train")) > len(Store(built[2], "train"))


def test_a_modality_of_other_subjects_is_refused(raw, tmp_path):
    root = tmp_path / "adni"
    shutil.copytree(raw / "adni", root)
    (root / "clinical/clinical_merged.csv").write_text("PTID,AGE\n7,60\n")
    with pytest.raises(DataError, match="clinical_merged.csv: holds none of the 80 subjects"):
        adni.cohort(tmp_path, seed=0)
    (root / "clinical/clinical_merged.csv").unlink()
    (root / "genomic/genomic_merged.h5ad").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="no HDF5 file"):
        adni.cohort(tmp_path, seed=0, modalities=("genomic",))


def test_build_and_configuration(raw, tmp_path):
    config = configs.load(configs.parse(["--config=configs/flexmoe_adni.py"]))
    folder = build.prepare("adni", raw, tmp_path, options=config.data.options.to_dict())
    store = Store(folder, "train")
    rows = store.read(np.arange(len(store)))
    assert rows["genomic/values"].shape[1:] == (12,) and np.isfinite(rows["genomic/values"]).all()
    made = make_setup(config, folder)  # traces the method on a batch, compiles nothing
    assert made.spec.modality_names == adni.MODALITIES


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["", ":volume"])
def test_the_shipped_configuration_trains(variant, raw, tmp_path, monkeypatch):
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    args = [f"--config=configs/flexmoe_adni.py{variant}", f"--config.data.raw_dir={raw}"]
    args += [f"--config.train.{k}=4" for k in ("steps", "eval_every", "save_every", "log_every")]
    if variant:
        args += ["--config.data.options.volume=(6,5,4,1)"]
    assert main([*args, f"--workdir={tmp_path / 'w'}", "--config.eval.bootstrap=20"]) == 0


def test_damage_is_named(tmp_path):
    fake.write("adni", tmp_path, patients=20)
    root = tmp_path / "adni"
    table = root / "clinical" / "clinical_merged.csv"
    text = table.read_text()
    table.write_text(text.replace(",True", ",often", 1))
    with pytest.raises(DataError, match=r"clinical_merged.csv: line \d+: a cell is no number"):
        adni.cohort(tmp_path, seed=0)
    table.write_text(text)
    (root / "label.csv").write_text("PTID,DIAGNOSIS\n001_S_1,4\n")
    with pytest.raises(DataError, match="label.csv: line 2: DIAGNOSIS") as error:
        adni.cohort(tmp_path, seed=0)
    assert "001_S_1" not in str(error.value)
    splits = root / "PTID_splits.json"
    splits.write_text(json.dumps({"training": ["a"], "validation": ["a"], "testing": []}))
    (root / "label.csv").write_text("PTID,DIAGNOSIS\na,1\n")
    with pytest.raises(DataError, match="in train and in val"):
        adni.cohort(tmp_path, seed=0)
    who = "011_S_0002"
    lists = {"training": [who], "validation": [], "testing": []}
    for wrong in (
        {who: "training"},
        [who],
        5,
        lists | {"testing": None},
        lists | {"training": who},
    ):
        splits.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="PTID_splits.json: must hold the lists") as error:
            adni.cohort(tmp_path, seed=0)
        assert who not in str(error.value)
    (root / "label.csv").write_text("\ufeffPTID,DIAGNOSIS\n,1\n")  # with Excel's mark
    with pytest.raises(DataError, match="label.csv: line 2: PTID is missing"):
        adni.cohort(tmp_path, seed=0)
    (root / "label.csv").unlink()
    assert adni.missing_files(tmp_path) == [f"{root / 'label.csv'}: missing"]


def few(folder, labels, clinical, splits=None):
    """What is read of a label file and clinical table of these lines."""
    root = folder / "adni"
    (root / "clinical").mkdir(parents=True, exist_ok=True)
    (root / "label.csv").write_text("\n".join(["PTID,DIAGNOSIS", *labels]))
    (root / "clinical/clinical_merged.csv").write_text("\n".join(["PTID,AGE", *clinical]))
    if splits is not None:
        (root / "PTID_splits.json").write_text(json.dumps(splits))
    return subjects(folder, modalities=("clinical",))


def test_a_row_without_a_subject_is_refused(raw, tmp_path):
    import h5py

    root = tmp_path / "adni"
    shutil.copytree(raw / "adni", root)
    with h5py.File(root / "genomic/genomic_merged.h5ad", "a") as file:
        people = file["obs/_index"][:]
        people[0] = b""
        file["obs/_index"][:] = people
    with pytest.raises(DataError, match="genomic_merged.h5ad: a subject is missing"):
        adni.cohort(tmp_path, seed=0, modalities=("genomic",))
    with open(root / "image/UCSFFSX7_01Jan2025.csv", "a") as handle:
        handle.write(",2030-01-01,1,2,3,Pass\n")
    with pytest.raises(DataError, match=r"UCSFFSX7.*: line \d+: PTID is missing"):
        adni.cohort(tmp_path, seed=0, modalities=("image",))


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e300"])
def test_an_infinite_cell_is_refused(cell, tmp_path):
    with pytest.raises(DataError, match="clinical_merged.csv: line 3: a cell is infinite"):
        few(tmp_path, ["a,1", "b,2"], ["a,70", f"b,{cell}"])


def test_a_number_with_and_without_zeros_is_refused(tmp_path):
    for name, labels, clinical, splits in (
        ("label.csv", ["007,1", "7,2"], ["7,70"], None),
        ("clinical_merged.csv", ["7,1", "b,2"], ["007,70", "b,60"], None),
        (
            "PTID_splits.json",
            ["7,1"],
            ["7,70"],
            {"training": ["007"], "validation": [], "testing": []},
        ),
    ):
        with pytest.raises(DataError, match=f"{name}: a subject has leading zeros"):
            few(tmp_path / name, labels, clinical, splits)


@pytest.mark.parametrize(
    "options", [{"image": "pet"}, {"modalities": ("retina",)}, {"variants": 0}]
)
def test_wrong_options(options):
    with pytest.raises(ConfigError, match=f"data.options.{[*options][0]}"):
        adni.spec(**options)
