"""Group columns: beside the records, never part of them."""

import dataclasses

import numpy as np
import pytest

from m4.data import build, describe
from m4.data.bands import band
from m4.data.sets import synthetic
from m4.data.store import Store
from m4.errors import DataError
from m4.specs import DataSpec
from tests.data.toy_cohort import SPEC, build_into, example, make_cohort

COLUMNS = ("sex", "site")


def grouped(number):
    """The toy example with categories; every fifth patient's site is unknown."""
    found = {"sex": ("female", "male")[number % 2]}
    found |= {} if number % 5 == 0 else {"site": f"<b>site {number % 3}</b>"}
    return {**example(number), "groups": found}


def cohort(make=grouped):
    found = make_cohort(make)
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, groups=COLUMNS))


def test_categories_stand_beside_the_records_in_their_order(tmp_path):
    store = Store(build_into(tmp_path / "toy", cohort()), "val")
    numbers = range(40, 51)
    found = store.groups()
    assert [*found] == [*COLUMNS] == [*store.spec.groups]
    assert found["sex"].tolist() == [("female", "male")[i % 2] for i in numbers]
    assert found["site"].tolist() == ["" if i % 5 == 0 else f"<b>site {i % 3}</b>" for i in numbers]


def test_records_are_the_same_with_and_without_groups(tmp_path):
    stores = [
        Store(build_into(tmp_path / name, made), "train")
        for name, made in (("with", cohort()), ("without", make_cohort()))
    ]
    rows = [store.read(range(len(store))) for store in stores]
    np.testing.assert_equal(*rows)
    assert stores[1].groups() == {} and "groups" not in stores[1].manifest["schema"]
    assert stores[0].manifest["normalisers"] == stores[1].manifest["normalisers"]


def test_the_name_of_the_folder_does_not_depend_on_groups_but_they_are_added(tmp_path, monkeypatch):
    class Toy:
        VERSION, LICENCE, WHERE = "1", "CC0", "nowhere"
        spec = staticmethod(lambda **_: SPEC)
        missing_files = staticmethod(lambda raw_dir, **_: [])
        cohort = staticmethod(lambda raw_dir, *, seed, **_: make_cohort())

    monkeypatch.setattr(build.data_sets, "find", lambda name: Toy)
    before = build.prepare("toy", tmp_path, tmp_path / "data")
    assert Store(before, "test").groups() == {}
    Toy.spec = staticmethod(lambda **_: cohort().spec)
    Toy.cohort = staticmethod(lambda raw_dir, *, seed, **_: cohort())
    after = build.prepare("toy", tmp_path, tmp_path / "data")
    assert after == before
    assert {*Store(after, "test").groups()} == {*COLUMNS}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sex": 1}, "split train, record 1, group sex: its category is no name"),
        ({"sex": "a\nb"}, "group sex: its category is no name"),
        ({"sex": "x" * 201}, "group sex: its category is no name"),
        ({"age": "old"}, r"\['age'\] are no group columns"),
        (["female"], "groups must be a dict"),
    ],
)
def test_refuses_what_is_no_category(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        build_into(tmp_path / "toy", cohort(lambda i: {**example(i), "groups": wrong}))


def test_a_damaged_file_of_groups_is_noticed(tmp_path):
    folder = build_into(tmp_path / "toy", cohort())
    (folder / "groups/test.parquet").unlink()
    with pytest.raises(DataError, match="groups/test.parquet"):
        Store(folder, "test")


@pytest.mark.parametrize("names", [("sex", "sex"), ("<b>",), ("",)])
def test_refuses_names_that_are_none(names):
    with pytest.raises(ValueError, match="group"):
        DataSpec(SPEC.modalities, SPEC.tasks, groups=names)


@pytest.mark.parametrize(
    ("value", "found"),
    [(17, "under 50"), (50, "50 to under 65"), (64.9, "50 to under 65"), (80, "80 and over"),
     (None, ""), (float("nan"), "")],
)  # fmt: skip
def test_bands(value, found):
    assert band(value, (50, 65, 80)) == found


def test_the_synthetic_cohort_knows_its_groups():
    small = {"num_patients": 400, "steps": 4, "lab_steps": 2, "dims": {"notes": 2, "cxr": 2}}
    rows = [e for split in synthetic.cohort(seed=0, **small).splits.values() for e in split()]
    static = np.array([e["inputs"]["static"]["values"] for e in rows])
    assert [e["groups"]["sex"] == "female" for e in rows] == (static[:, 1] == 1).tolist()
    bands = [band(age, synthetic.AGES) for age in static[:, 0]]
    assert [e["groups"]["age_band"] for e in rows] == bands
    kind = np.array([e["groups"]["icu_type"] for e in rows])
    ecg = np.array(["ecg" in e["inputs"] for e in rows])
    died = np.array([e["targets"]["ihm48"] or 0 for e in rows]) > 0
    assert ecg[kind == "cardiac"].mean() > ecg[kind == "medical"].mean() + 0.1
    assert died[kind == "surgical"].mean() < died[kind == "medical"].mean() - 0.05


def test_a_description_counts_the_categories_but_not_the_rare(tmp_path, monkeypatch):
    def make(number):
        found = grouped(number)
        found["groups"]["site"] = "b" if number == 1 else "a" if number % 5 else "None"
        return found

    class Toy:
        VERSION, LICENCE, WHERE = "1", "CC0", "nowhere"
        spec = staticmethod(lambda **_: cohort(make).spec)
        missing_files = staticmethod(lambda raw_dir, **_: [])
        cohort = staticmethod(lambda raw_dir, *, seed, **_: cohort(make))

    monkeypatch.setattr(build.data_sets, "find", lambda name: Toy)
    folder = build.prepare("toy", tmp_path, tmp_path / "data")
    text = describe.lines(folder)
    known = {split: Store(folder, split).groups() for split in ("train", "val", "test")}
    start = text.index("group sex (rows)")
    for line, category in zip(text[start + 1 : start + 3], ("female", "male"), strict=True):
        counts = [int((own["sex"] == category).sum()) for own in known.values()]
        shown = [str(n) if n >= describe.SMALLEST or not n else "<10" for n in counts]
        assert line.split() == [category, *shown]
    sites = text[text.index("group site (rows)") + 1 :]
    assert sites[0].split()[0] == "a" and sites[1].startswith("  not known")
    assert sites[2] == "  1 more, rarer"
    assert not any(line.split()[:1] == ["b"] for line in text)
