"""A ViT named on the command line: whole runs, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from m4.main import main
from m4.modes import report
from m4.nn.pretrained import images, safetensors, vit_file
from tests.nn import test_vit_file

CONFIGS = Path(__file__).parents[2] / "configs"
TOY = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic_images',
                  options=dict(num_patients=60, size=16, tasks=('finding',))),
        method=dict(name='tests.toy:Toy', width=4),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=8, save_every=2, eval_every=2, select='finding/auroc'),
        eval=dict(batch_size=8, bootstrap=5, baselines=False, subsets=False),
    ))
"""
SIZES = vit_file.ViTSizes(8, 12, 1, 2, patch=8, grid=2, channels=3, pooler=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    weights = test_vit_file.weights(SIZES)
    safetensors.write(weights, folder / "vit.safetensors")
    weights["encoder.layer.0.intermediate.dense.weight"] = np.zeros((12, 7), np.float32)
    del weights["layernorm.bias"]
    safetensors.write(weights, folder / "bad.safetensors")
    (folder / "torn.safetensors").write_bytes(b"\x80\x04what is this")
    (folder / "model.pth").write_bytes(b"")
    large = test_vit_file.weights(vit_file.ViTSizes(8, 12, 1, 2, 16, 14, 3, 0))
    safetensors.write(large, folder / "large.safetensors")
    return folder


@pytest.fixture
def run(place, tmp_path, monkeypatch):
    """Runs m4 on generated images of 16 x 16 with a file of weights, before a toy or `config`."""
    monkeypatch.setenv("M4_DATA_DIR", str(place / "data"))
    monkeypatch.setattr(report, "build", lambda folder: None)  # a quarter of the time
    (place / "toy.py").write_text(TOY)

    def start(file, *args, config=place / "toy.py"):
        flags = (f"--config={config}", f"--workdir={tmp_path}", "--config.image.num_heads=2")
        return main([*flags, f"--config.image.file={place / file}", *args])

    return start


@pytest.mark.parametrize(
    "config", ["toy", pytest.param("m4oe_views.py:tiny", marks=pytest.mark.slow)]
)
def test_trains_with_the_files_weights_and_keeps_them(config, run, place, tmp_path, capsys):
    target = place / "toy.py" if config == "toy" else CONFIGS / config
    assert run("vit.safetensors", config=target) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text())["image"]["tuning"] == "frozen"
    scores = json.loads((tmp_path / "results/test.json").read_text())["scores"]
    assert "full" in {score["subset"] for score in scores}
    last = max((tmp_path / "checkpoints/last").glob("[0-9]*"), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        params = reader.restore(last / "state")["params"]
    found = traverse_util.flatten_dict(params["frozen_image"], sep="/")
    _, readers = images.load(str(place / "vit.safetensors"), 2)
    assert found.keys() == readers.keys()
    for path, read in readers.items():
        np.testing.assert_array_equal(found[path], read())
    assert "vit_" not in str(params["method"].keys())  # M4oE's own


@pytest.mark.parametrize(
    ("file", "option", "says"),
    [
        ("none.safetensors", "", "image.file: .*none.safetensors"),
        ("model.pth", "", "image.file: .*model.pth: must be a .safetensors file"),
        ("torn.safetensors", "", "image.file: .*torn.safetensors: not a safetensors file"),
        ("bad.safetensors", "", "image.file: .*: layernorm.bias is missing; encoder.layer.0"),
        ("large.safetensors", "", "modality cview_cc: images of 16 x 16, .* for 224 x 224"),
        ("vit.safetensors", "pooling=first_", "image.pooling='first_': must be one of auto, first"),
        ("vit.safetensors", "tuning=thawed", "image.tuning='thawed': must be one of frozen, tuned"),
        ("vit.safetensors", "scale=cifar", "image.scale='cifar': must be one of auto, unit"),
        ("vit.safetensors", "fil=x", "image.fil.* did you mean file"),
    ],
)
def test_one_line_of_what_is_wrong(file, option, says, run, capsys):
    args = [f"--config.image.{option}"] if option else []
    assert run(file, *args) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("m4: config error: ")
    assert re.search(says, lines[0])
