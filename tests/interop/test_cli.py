"""Flex-MoE, FlexCare and M4oE through the command line, with real safetensors files, no torch."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from m4 import config as configs
from m4.interop import state_dicts
from m4.interop.__main__ import fidelity_of, layout_of, main, names
from m4.main import main as train
from m4.modes import eval as eval_mode
from m4.run.setup import make_setup
from m4.run.workspace import prepare
from tests.interop import shared

ROOT = Path(__file__).parents[2]
METHODS = {
    "flexmoe": (
        "kind='tables'",
        "width=8, num_heads=2, num_patches=2, moe=dict(hidden=6, num_experts=4, top_k=2)",
    ),
    "flexcare": (
        "kind='care'",
        "width=8, depth=1, num_heads=2, mlp=6, patch=4, moe=dict(hidden=8, num_experts=3, top_k=2)",
    ),
    "m4oe": (
        "size=8, num_patients=60",
        "width=8, moe=dict(hidden=6, num_experts=2), num_heads=2, modality_experts=2,"
        " fusion_experts=2, vit_depth=1, vit_heads=2, patch=4",
    ),
}
SELECT = {"flexmoe": "diagnosis/auroc_macro", "flexcare": "ihm48/auroc", "m4oe": "risk/auroc"}
# What the files hold beyond what m4 reads: a dead tensor, and one that is stored twice.
DEAD = {
    "flexmoe": {},
    "flexcare": {"encoder_layer_fusion.linear1.bias": 6, "note_projection.pooler.dense.bias": 4},
    "m4oe": {"head3.bias": 2, "cls_token": 8},
}
UNREAD = ("task_embedding.weight", "ehr_pos_embed", "cxr_pos_embed", "note_pos_embed")


@pytest.fixture(params=METHODS)
def job(request, tmp_path, monkeypatch):
    """Name of the method, its configuration file, and tensors of the release for it."""
    monkeypatch.setitem(os.environ, "M4_DATA_DIR", str(tmp_path / "data"))
    name = request.param
    options, fields = METHODS[name]
    data = "synthetic_images" if name == "m4oe" else "tests.interop.cli_data"
    (tmp_path / "c.py").write_text(f"""
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name={data!r}, options=dict({options})),
        method=dict(name={name!r}, fidelity='released', {fields}),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=4, select={SELECT[name]!r}),
        eval=dict(batch_size=4, bootstrap=5, baselines=False, subsets=False),
    ))
""")
    config = configs.load(configs.parse([f"--config={tmp_path / 'c.py'}"]))
    made = make_setup(config, prepare(config))
    shapes = traverse_util.flatten_dict(made.state.eval_params, sep="/")
    return name, tmp_path, shared.tensors(layout_of(name)(made.method), shapes)


def run(name, command, *args):
    return main([command, f"--method={name}", *map(str, args)])


def test_round_trip_and_every_misfit(job, capsys):
    name, folder, theirs = job
    file, config = folder / "theirs.safetensors", f"--config={folder / 'c.py'}"
    extra = {n: np.zeros(size, np.float32) for n, size in DEAD[name].items()}
    state_dicts.write(file, theirs | extra)
    out = folder / "w"
    (out / "checkpoints/best/0.orbax-checkpoint-tmp").mkdir(parents=True)  # of one that was killed
    assert run(name, "import", f"--torch={file}", config, f"--out={out}") == 0
    printed = capsys.readouterr().out
    assert f"{len(theirs) + len(extra)} tensors -> " in printed
    assert printed.count("not taken: 1 tensors") == len(extra)
    partly = [n for n in UNREAD if n in theirs]
    assert [line.split()[4] for line in printed.splitlines() if "rows of" in line] == sorted(partly)
    back = folder / "back.safetensors"
    assert run(name, "export", f"--torch={back}", f"--workdir={out}") == 0
    assert capsys.readouterr().out.count("zeros: rows of ") == len(partly)
    found = state_dicts.read(back).tensors
    assert found.keys() == theirs.keys()
    for key, x in theirs.items():
        kept = found[key] != 0 if key in UNREAD else ...
        np.testing.assert_array_equal(found[key][kept], x[kept], err_msg=key)

    names = [n for n in sorted(theirs) if theirs[n].ndim == 2 and "gate" not in n][:2]
    wrong = dict(theirs)
    del wrong[names[0]]
    wrong[names[1]] = np.zeros((2, 3), np.float32)
    wrong["extra.weight"] = np.zeros(4, np.float32)
    state_dicts.write(file, wrong)
    capsys.readouterr()
    assert run(name, "import", f"--torch={file}", config, f"--out={folder / 'no'}") == 3
    rows, columns = theirs[names[1]].shape
    shape = list(theirs[names[0]].shape)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.removeprefix(f"m4: data error: {file}: ") for line in lines) == sorted([
        f"{names[0]} is missing, expected float32{shape}",
        f"{names[1]} is float32[2, 3], expected float32[{rows}, {columns}]",
        "extra.weight float32[4] is surplus",
    ])  # fmt: skip
    assert not (folder / "no/checkpoints").exists()


def parameters(work, given):
    """Name -> array of the best step, as a run has them."""
    config = configs.load(configs.parse([*given, f"--workdir={work}"]))
    made = make_setup(config, prepare(config))
    found = eval_mode.best_params(config, made, work)
    return traverse_util.flatten_dict(jax.device_get(found), sep="/")


@pytest.mark.slow
@pytest.mark.parametrize("procs", [1, 2])
def test_training_begins_from_an_import(job, capsys, procs):
    """A step of a rate that moves nothing leaves the authors' weights as they are."""
    name, folder, theirs = job
    file, config = folder / "theirs.safetensors", f"--config={folder / 'c.py'}"
    state_dicts.write(file, theirs)
    assert run(name, "import", f"--torch={file}", config, f"--out={folder / 'w'}") == 0
    given = [config, f"--config.train.from={folder / 'w'}", "--config.optim.lr=1e-12"]
    given += ["--config.train.steps=1", f"--config.mesh.data={procs}"]
    given += [f"--workdir={folder / 't'}"]
    if procs == 1:
        assert train(given) == 0
        said = capsys.readouterr().out
    else:
        command = [sys.executable, str(ROOT / "launch/local.py"), "--procs=2", "--devices=1", "--"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *given], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        said = done.stdout
    before, after = (parameters(folder / w, given[:-1]) for w in ("w", "t"))
    assert f"step 0: {len(before)} of {len(before)} arrays" in said and "anew" not in said
    for path, x in before.items():
        np.testing.assert_allclose(after[path], x, atol=1e-6, err_msg=path)


def test_methods_and_their_fidelities_are_found_from_their_folders(capsys):
    assert {*METHODS, "fusemoe"} == {*names()}
    assert main(["--help"]) == 0
    assert ", ".join(names()) in capsys.readouterr().out
    assert {fidelity_of(name) for name in names()} == {"released"}
