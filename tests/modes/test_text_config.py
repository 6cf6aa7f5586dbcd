"""A BERT named in the configuration: its weights are in a fresh state, on one device and on two."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from m4 import config as configs
from m4.nn.pretrained import bert, safetensors
from m4.run.setup import make_setup
from m4.run.workspace import prepare

CONFIG = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.interop.cli_data', options=dict(kind='text')),
        method=dict(name='m3h', width=4, task_width=4, dropout=0.0),
        text=dict(file='model.safetensors', num_heads=2),
        optim=dict(lr=0.01),
        train=dict(steps=3, batch_size=8, select='death/auroc'),
        eval=dict(batch_size=8),
    ))
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_fresh_state_holds_the_files_weights(tmp_path, monkeypatch, devices):
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(CONFIG)
    sizes = bert.BertSizes(11, 6, 2, 8, 12, 1, 2, 0)
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in bert.tables(sizes)[1].items()}
    safetensors.write(weights, "model.safetensors")
    flags = configs.parse(["--config=c.py", f"--config.mesh.data={devices}"])
    config = configs.load(flags)
    made = make_setup(config, prepare(config))
    state = made.init()
    found = traverse_util.flatten_dict(jax.device_get(state.params["frozen_text"]), sep="/")
    _, readers = bert.load("model.safetensors", 2)
    assert found.keys() == readers.keys()
    for path, read in readers.items():
        np.testing.assert_array_equal(found[path], read())
