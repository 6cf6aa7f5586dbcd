"""`train.from`: training begins with the parameters of another work directory."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from m4.main import main

CONFIG = """
import ml_collections
def get_config(variant=''):
    tasks = tuple((variant or 'ihm48,los').split(','))
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic', options=dict(modalities=('vitals', 'static'), tasks=tasks,
                                                 num_patients=120, steps=4)),
        method=dict(name='fusemoe', width=8, num_queries=2, depth=1, num_heads=2, dropout=0.0,
                    moe=dict(num_experts=4, top_k=1, hidden=8)),
        optim=dict(lr=1e-12),
        train=dict(steps=1, batch_size=16, log_every=1, eval_every=1, save_every=1,
                   select=f'{tasks[0]}/log_loss' if tasks[0] != 'los' else 'los/mae'),
        eval=dict(batch_size=16, bootstrap=5, subsets=False, baselines=False),
    ))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run in 'w'."""
    folder = tmp_path_factory.mktemp("from")
    (folder / "c.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_DATA_DIR", str(folder / "data"))
        assert run(folder, "w", "--config.seed=3") == 0
    return folder


@pytest.fixture(autouse=True)
def data(place, monkeypatch):
    monkeypatch.setenv("M4_DATA_DIR", str(place / "data"))


def run(place, work, *args, variant=""):
    return main([f"--config={place / 'c.py'}:{variant}", f"--workdir={place / work}", *args])


def best(folder):
    """Name -> array of the newest best parameters."""
    (step,) = sorted((folder / "checkpoints/best").glob("[0-9]*"))[-1:]
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(step / "state")["params"]
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def test_begins_where_the_other_ended(place, capsys):
    """Same tasks, other seed: after a step that moves nothing all is as it was there."""
    assert run(place, "same", f"--config.train.from={place / 'w'}") == 0
    said = capsys.readouterr().out
    there, here = best(place / "w"), best(place / "same")
    assert there.keys() == here.keys()
    for name, value in there.items():
        np.testing.assert_allclose(here[name], value, atol=1e-6, err_msg=name)
    assert f"from     {place / 'w'}, step 1: {len(here)} of {len(here)} arrays" in said


def test_what_is_of_another_task_begins_anew_and_is_named(place, capsys):
    assert run(place, "other", f"--config.train.from={place / 'w'}", variant="los,phe") == 0
    said = capsys.readouterr().out
    there, here = best(place / "w"), best(place / "other")
    fresh = {name for name in here if "phe" in name}
    assert fresh and not fresh & there.keys()
    for name in here.keys() - fresh:
        np.testing.assert_allclose(here[name], there[name], atol=1e-6, err_msg=name)
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert "heads.phe" in lines["anew"] and "heads.ihm48" in lines["left"]


def test_goes_on_without_the_folder_that_it_began_from(place):
    shutil.copytree(place / "w", place / "gone")
    origin = f"--config.train.from={place / 'gone'}"
    assert run(place, "begun", origin) == 0
    shutil.rmtree(place / "gone")
    assert run(place, "begun", origin, "--mode=train") == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--config.train.from=nowhere"], 2, "train.from=nowhere: no such folder"),
        (["--config.method.width=16"], 2, "differs: method.width: 8 -> 16"),
        (["--config.data.options.modalities=('static','vitals')"], 2, "vitals, static there"),
    ],
)
def test_refused(place, capsys, request, args, code, words):
    work = f"refused{len(request.node.name)}"
    origin = [f"--config.train.from={place / 'w'}"] if "from" not in args[0] else []
    assert run(place, work, *origin, *args) == code
    assert words in capsys.readouterr().err
    shutil.rmtree(place / work)


def test_refused_without_a_sound_checkpoint(place, capsys):
    shutil.copytree(place / "w", place / "own")
    shutil.rmtree(place / "own/checkpoints/last")
    assert run(place, "own", f"--config.train.from={place / 'own'}", "--force_config") == 2
    assert "is this run's own" in capsys.readouterr().err
    shutil.copytree(place / "w", place / "bad")
    for step in (place / "bad/checkpoints/best").glob("[0-9]*"):
        note = json.loads((step / "meta/metadata").read_text())
        (step / "meta/metadata").write_text(json.dumps({**note, "note": {}}))
    assert run(place, "x", f"--config.train.from={place / 'bad'}") == 4
    assert "no sound checkpoint" in capsys.readouterr().err
    shutil.rmtree(place / "bad/checkpoints/best")
    assert run(place, "y", f"--config.train.from={place / 'bad'}") == 4
    assert "holds no checkpoint to begin from" in capsys.readouterr().err
