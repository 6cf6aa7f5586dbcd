"""References read labels of training rows alone."""

import ml_collections
import numpy as np
import pytest

from m4.data import aggregate
from m4.modes import eval as eval_mode
from m4.specs import DataSpec, ModalitySpec, TaskSpec

SPEC = DataSpec((ModalitySpec("a", "table", (2,)),), (TaskSpec("t", "binary"),))
CONFIG = ml_collections.ConfigDict({"seed": 0})


class Split:
    """Rows of a table whose labels can be poison."""

    def __init__(self, seed, *, poison=None):
        rng = np.random.default_rng(seed)
        self.x, self.poison = rng.normal(size=(80, 2)), poison
        self.y = (self.x[:, 0] > 0).astype(np.float32)

    def columns(self, keys):
        own = {"y/t": self.y, "y/t/mask": np.ones(80, np.float32), "patient": np.arange(80)}
        if self.poison and any(key.startswith("y/") for key in keys):
            raise AssertionError(f"labels of the {self.poison} rows are read")
        return {key: own[key] for key in keys}


@pytest.fixture
def fitted(monkeypatch):
    monkeypatch.setattr(aggregate, "table", lambda store: (store.x, ["a/0", "a/1"]))
    names = ("boosting", "late", "linear")
    return lambda train, asked: eval_mode.references_of(CONFIG, SPEC, train, asked, names)


def test_labels_of_the_asked_rows_are_never_read(fitted):
    found = fitted(Split(0), Split(1, poison="test"))
    with pytest.raises(AssertionError, match="train rows are read"):
        fitted(Split(0, poison="train"), Split(1))  # the guard sees what it should see
    assert {*found} == {"boosting", "late", "linear"}


def test_labels_of_the_training_rows_decide(fitted):
    train, other = Split(0), Split(0)
    other.y = 1 - other.y
    a, b = (fitted(split, Split(1)) for split in (train, other))
    for name in a:
        assert np.corrcoef(a[name]["t"][:, 0], b[name]["t"][:, 0])[0, 1] < -0.9, name
