"""The fuzzer survives a short run, and sees what it must not let through."""

import random

import pytest

from m4.errors import DataError
from tests.faults import fuzz
from tests.faults.harness import Bench


def test_a_short_run_loses_nothing(tmp_path):
    bench = Bench(tmp_path, tmp_path, True, seed=3)
    found = fuzz.fuzz(bench)
    assert found.tried == found.survived == 1500 and found.lost == 0
    refused = int(found.notes.split()[0])
    assert 500 < refused < 1500  # the changes matter, and not every one of them


def raises(error):
    def read(rng):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "end"),
    [
        (lambda rng: None, "accepted"),
        (raises(DataError("x.csv, line 3: age is not a number")), "refused"),
        (raises(DataError(f"age is {fuzz.TEXT}")), "content shown"),
        (lambda rng: print(fuzz.TEXT), "content shown"),
        (raises(SystemExit(0)), "SystemExit in test_fuzz.py"),
        (raises(KeyError("age")), "KeyError in test_fuzz.py"),
    ],
)
def test_how_an_input_ends(read, end):
    assert fuzz.attempt(read, random.Random(0)).startswith(end)


def test_a_hang_is_seen(monkeypatch):
    def endless(rng):
        while True:
            pass

    monkeypatch.setattr(fuzz, "LIMIT", 0.05)
    assert fuzz.attempt(endless, random.Random(0)) == "a hang"
