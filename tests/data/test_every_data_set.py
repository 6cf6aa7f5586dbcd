"""Laws that every data set of m4/data/sets obeys, where its files are open, invented or not needed.

Data sets are found, not listed. The files come from the data set itself (`INVENTED`), from
`write_<name>` of tests/raw_files.py, or, where the data are generated, from nowhere.
"""

import functools
import inspect
from collections import Counter

import numpy as np
import pytest

from m4.data import data_sets, fake
from m4.data import record as records
from tests import raw_files

PATIENTS = 30
PACKAGES = {"imaging": "pydicom", "adni": "h5py"}
SMALL = {"num_patients": 80, "size": 16, "block": 5}  # where a data set has such an option


def cases():
    """(name of the data set, its options, what writes its files)."""
    for files, (name, options) in fake.invented().items():
        if files != "mimic-linked":  # goes with files that are there
            write = functools.partial(fake.write, files, patients=PATIENTS)
            yield name, options, lambda root, write=write: write(folder=root)
    for name in data_sets.names():
        if hasattr(raw_files, f"write_{name}"):
            write = getattr(raw_files, f"write_{name}")
            yield name, {}, lambda root, write=write: write(root, np.random.default_rng(0))
        elif name not in ("meds", "tables") and not data_sets.find(name).missing_files("/none"):
            yield name, {}, lambda root: None


CASES = [pytest.param(*case, id="-".join([case[0], *case[1].values()])) for case in cases()]


def test_the_cases_are_found():
    found = {case.values[0] for case in CASES}
    assert found >= {"adni", "imaging", "mosi", "pam", "synthetic", "synthetic_images"}
    assert found >= {"physionet2012", "support2", "mfeat"}


@pytest.mark.parametrize("name", data_sets.names())
def test_it_says_what_it_is(name):
    found = data_sets.find(name)
    for text in (found.VERSION, found.LICENCE, found.WHERE):
        assert isinstance(text, str) and text and "\n" not in text
    with pytest.raises(TypeError, match="no_such_option"):
        found.spec(no_such_option=1)
    if hasattr(found, "INVENTED"):
        assert callable(found.invent)


def read(found, root, seed, options):
    """Records by split, each split read twice, and the cohort."""
    cohort = found.cohort(root, seed=seed, **options)
    passes = []
    for _ in range(2):
        cuts = Counter()
        passes.append(
            {
                split: [
                    records.encode(cohort.spec, e, where=f"{split} {n}", flow=cuts)
                    for n, e in enumerate(start())
                ]
                for split, start in cohort.splits.items()
            }
        )
    assert_same(*passes)
    return passes[0], cohort


def assert_same(first, second):
    assert [*first] == [*second] == ["train", "val", "test"]
    for split, records_of in first.items():
        assert len(records_of) == len(second[split]) > 0, split
        for one, two in zip(records_of, second[split], strict=True):
            np.testing.assert_equal(one, two)


@pytest.mark.parametrize(("name", "options", "write"), CASES)
def test_it_obeys_the_laws(name, options, write, tmp_path):
    pytest.importorskip(PACKAGES.get(name, "numpy"))
    found = data_sets.find(name)
    known = inspect.signature(found.spec).parameters
    options = options | {key: value for key, value in SMALL.items() if key in known}
    empty = tmp_path / "empty"
    empty.mkdir()
    write(tmp_path)
    needs_none = not found.missing_files(empty, **options)
    assert needs_none or all(isinstance(s, str) for s in found.missing_files(empty, **options))
    assert found.missing_files(tmp_path, **options) == []
    splits, cohort = read(found, tmp_path, 1, options)
    declared = found.spec(**options)
    assert cohort.spec.modality_names == declared.modality_names
    assert cohort.spec.tasks == declared.tasks
    whose = {split: {int(r["patient"]) for r in part} for split, part in splits.items()}
    assert sum(map(len, whose.values())) == len(set.union(*whose.values())), "in two splits"
    again, _ = read(found, tmp_path, 2, options)
    rows = sum(map(len, splits.values()))
    assert name == "synthetic" or rows == sum(map(len, again.values())), "the seed adds or drops"
    assert all(count >= 0 for _, count in cohort.flow)
    assert needs_none == (not cohort.sources)
    for file, facts in cohort.sources.items():
        assert (tmp_path / file).stat().st_size == facts["bytes"] and len(facts["sha256"]) == 64
