"""A folder with the module's configuration, and the train steps that were made."""

import pytest

from m4.train import step as steps


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
