"""Data of a study: read once, placed once, and the same as if they were not kept."""

import jax
import numpy as np
import pytest

from m4 import config as configs
from m4.lab import held

MIXTURE = {"name": "m4.lab.mixture:Mixture", "moe": {"num_experts": 4, "hidden": 4}}
PLANTED = {"data": {"name": "m4.lab.planted", "options": {"rows": 400}}, "method": MIXTURE}
PLANTED |= {"train": {"steps": 2, "batch_size": 16, "select": "y0/rmse"}}
SYNTHETIC = {"data": {"name": "synthetic", "options": {"num_patients": 150}}}
SYNTHETIC |= {"method": {"name": "m3h"}}
SYNTHETIC |= {"train": {"steps": 2, "batch_size": 8, "select": "ihm48/auroc"}}


def config(seed=0, base=PLANTED):
    given = base | {"seed": seed, "optim": {"lr": 0.01}, "eval": {"batch_size": 64}}
    return configs.check(given, {}, "test")


@pytest.fixture
def opener(tmp_path, monkeypatch):
    """An opener, and what it had prepared."""
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path))
    calls, prepare = [], held.prepare
    monkeypatch.setattr(held, "prepare", lambda c: calls.append(c.seed) or prepare(c))
    return held.Opener(2), calls


def test_seeds_share_data_that_no_seed_draws(opener):
    opener, calls = opener
    first, other = (opener(config(seed)) for seed in (0, 1))
    assert calls == [0] and first["test"] is other["test"]


def test_seeds_have_data_of_their_own_where_they_draw_them(opener):
    opener, calls = opener
    folders = [opener.folder(config(seed, SYNTHETIC)) for seed in (0, 1)]
    assert calls == [0, 1] and folders[0] != folders[1]


@pytest.mark.parametrize("most", [held.MOST, 0, 20_000])
def test_batches_that_are_kept_are_those_that_are_read(opener, monkeypatch, most):
    monkeypatch.setattr(held, "MOST", most)
    split, placed = opener[0](config())["test"], []
    place = lambda batch: placed.append(batch) or jax.device_put(batch)  # noqa: E731
    rounds = [[*split.batches(64, place, "here")] for _ in range(3)]
    assert len(placed) == len(rounds[0]) * (1 if most > 1e6 else 3)
    for one, *others in zip(*rounds, strict=True):
        for host, there in (one, *others):
            chosen = zip(*map(jax.tree.leaves, (one[0], host, there)), strict=True)
            assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in chosen)
    uid = np.concatenate([host.uid for host, _ in rounds[0]])
    assert [*uid[uid >= 0]] == [*range(len(split.store))]
    assert split.present.shape == (len(split.store), 4) and len(split.patients) == len(split.store)


@pytest.mark.parametrize(("most", "made"), [(held.MOST, 2), (0, 4), (200, 3)])
def test_stacks_are_made_once_for_those_who_draw_the_same(opener, monkeypatch, most, made):
    """Two arms with two tunings: of 200 bytes that may stay the first one's take 160."""
    monkeypatch.setattr(held, "MOST", most)
    split, calls = opener[0](config())["train"], []

    def stacks(key):
        calls.append(key)
        yield from (np.full(10, key * 100 + n) for n in range(2))

    rounds = [[*split.once(key, stacks(key), held.bytes_of)] for key in (0, 1, 0, 1)]
    assert len(calls) == made
    np.testing.assert_array_equal(rounds[0], rounds[2])
    np.testing.assert_array_equal(rounds[1], rounds[3])
    assert rounds[0][1][0] == 1 and rounds[1][1][0] == 101
