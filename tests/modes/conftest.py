"""A folder with the module's configuration, the train steps that were made, and a trained run."""

import pytest

from m4.train import step as steps
from tests.modes import hospital


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
    """Holds `c.py`, the text CONFIG of the test's module; data are built below it."""
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "c.py").write_text(request.module.CONFIG)
    return tmp_path


@pytest.fixture
def made(monkeypatch):
    """Every step that `make_step` returns from here on."""
    found, original = [], steps.make_step

    def make_step(*args, **options):
        found.append(original(*args, **options))
        return found[-1]

    monkeypatch.setattr(steps, "make_step", make_step)
    return found


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with `hospital.train`'s run."""
    folder = tmp_path_factory.mktemp("hospital")
    hospital.train(folder)
    return folder


@pytest.fixture(scope="session")
def usual(place):
    """What the training hospital as it was is predicted, everybody in it."""
    assert hospital.ask(place, "usual", hospital.everyone()) == 0
    return hospital.predicted(place, "usual")
