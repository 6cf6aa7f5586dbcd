"""A built toy cohort, and real data where M4_RAW_DIR points at some."""

import os
from pathlib import Path

import pytest

from m4.data import build
from m4.data.store import Store
from tests.data.toy_cohort import build_into, make_cohort


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return build_into(tmp_path_factory.mktemp("built"), make_cohort())


@pytest.fixture(scope="session")
def train(built):
    return Store(built, "train")


@pytest.fixture(scope="session")
def raw_dir():
    folder = os.environ.get("M4_RAW_DIR")
    if not folder or not (Path(folder) / "physionet2012").is_dir():
        pytest.skip("M4_RAW_DIR does not point at a folder with physionet2012/")
    return Path(folder)


@pytest.fixture(scope="session")
def physionet(raw_dir, tmp_path_factory):
    return build.prepare("physionet2012", raw_dir, tmp_path_factory.mktemp("data"), seed=0)
