"""The code of docs/library.md runs as it stands, from the first block to the last."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest
from flax import linen as nn

import m4
from tests.api import ward

PAGE = (Path(__file__).parents[2] / "docs/library.md").read_text()


@pytest.mark.slow  # trains two models
@pytest.mark.filterwarnings("ignore:labs:UserWarning")  # one block leaves the measurements out
def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, new = ward.tables(150), ward.tables(12, seed=1, first=1000)
    (tmp_path / "ward.toml").write_text(ward.DEFINITION)
    ward.write(tmp_path / "raw", given)
    shutil.copytree(ward.write(tmp_path / "new", new), tmp_path / "raw/february")
    names = given | {
        "m4": m4,
        "nn": nn,
        "pandas": pandas,
        "new_patients": new["patients"],
        "new_measurements": new["measurements"],
        "who_and_when": new["outcomes"][["patient", "asked_at"]],
        "frames": new,
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)  # noqa: S102 (our own page)
    assert names["model"].workdir.samefile("runs/ward") and len(names["data"].split("train"))
    x_BTD = np.ones((2, 3, 4), np.float32)
    key = jax.random.key(0)
    params = names["Block"]().init({"params": key, "gate": key}, x_BTD, False)
    y_BTD, loss = names["Block"]().apply(params, x_BTD, False)
    assert y_BTD.shape == x_BTD.shape and np.isfinite(loss)
