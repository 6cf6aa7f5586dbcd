"""`--mode=interplay` end to end: one compiled step, and a file that adds up."""

import json
import math

import numpy as np
import pytest

from m4 import main, seal
from m4.modes import interplay

CONFIG = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic_images',
                  options=dict(num_patients=100, size=8, tasks=('density', 'risk'))),
        method=dict(name='m4oe', width=8, moe=dict(hidden=8, num_experts=2), modality_experts=2,
                    fusion_experts=2, vit_depth=1, num_heads=2, vit_heads=2, patch=4),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=16, select='density/accuracy'),
        eval=dict(batch_size=20, bootstrap=5, baselines=False, subsets=False),
    ))
"""

OTHER = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.interop.cli_data', options=dict(kind='tasks')),
        method=dict(name='m3h', width=4, task_width=4),
        optim=dict(lr=0.01),
        train=dict(steps=3, batch_size=8, select='death/auroc'),
        eval=dict(batch_size=8),
    ))
"""


def run(folder, *args):
    return main.main(
        ["--mode=interplay", f"--config={folder / 'c.py'}", f"--workdir={folder / 'w'}", *args]
    )


def test_every_analysis_from_one_compiled_step(folder, made, capsys):
    assert run(folder) == 0, capsys.readouterr().err
    found = json.loads((folder / "w/interplay.json").read_text())
    assert seal.listed(folder / "w") == ["interplay.json"] and not (folder / "w/lock").exists()
    assert len(made) == 2  # that of every run, and one for all choices of modalities
    printed = capsys.readouterr().out
    assert printed.count("trained on") == 5 and "trained on ffdm_cc alone" in printed
    assert found["modalities"] == ["cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo"]
    for task in ("density", "risk"):
        share = np.array(found["utilisation"][task])
        np.testing.assert_allclose(share.sum(), 1.0, rtol=1e-5)
        evenness = -(share * np.log(share)).sum() / math.log(4)
        np.testing.assert_allclose(found["evenness"][task], evenness, rtol=1e-5)
        for score in found["competition"][task].values():
            assert score["lost"] == score["alone"] - score["joint"]
            assert 0 <= min(score["alone"], score["joint"]) <= 1
        assert len(found["information"][task]) == 6
        # 20 test patients are too few for bits of a table of at least 8 cells
        assert set(found["information"][task].values()) == {None}
    assert [*found["conflict"]] == ["density risk"]
    assert -1 <= found["conflict"]["density risk"] <= 1


def test_too_few_rows_give_no_score():
    few = interplay.Split(
        features=np.zeros((9, 1, 2)),
        utilisation=np.zeros((9, 1, 1)),
        present=np.ones((9, 1), bool),
        labels={"risk": (np.arange(9) % 2, np.ones(9, bool))},
        patient=np.arange(9),
    )
    assert interplay._probed(few, few, "risk", 0) is None


def test_bits_are_of_the_rows_that_have_both_modalities():
    rng, rows = np.random.default_rng(0), 900
    x, z = rng.integers(0, 2, (2, rows))
    present = rng.random((rows, 3)) < 0.9
    split = interplay.Split(
        features=np.zeros((rows, 3, 1)),
        utilisation=np.zeros((rows, 3, 1)),
        present=present,
        labels={"risk": (x ^ z, rng.random(rows) < 0.9)},
        patient=np.arange(rows) // 2,
    )
    found = {"a": (0.5, x), "b": (0.5, z), "c": None}
    pairs = interplay._information(split, "risk", found, ("a", "b", "c"))
    # Of a label with 2 values nobody can know more than 1 bit; the exclusive or is all synergy.
    assert pairs["a b"]["synergy"] == pytest.approx(1.0, abs=0.02)
    assert pairs["a b"]["p"] == pytest.approx(1 / 201)
    assert pairs["a b"]["rows"] == (present[:, :2].all(1) & split.labels["risk"][1]).sum()
    assert pairs["a c"] is None is pairs["b c"]


def test_a_method_without_features_is_refused_before_it_is_trained(folder, capsys):
    (folder / "c.py").write_text(OTHER)
    assert run(folder) == 2
    said = capsys.readouterr()
    assert "method.name='m3h': returns no features and no utilisation" in said.err
    assert "trained" not in said.out
