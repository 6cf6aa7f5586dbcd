"""`train.from`: training begins with the parameters of another work directory."""

import dataclasses
import json
import shutil

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from m4 import config as configs
from m4 import seal
from m4.errors import ConfigError
from m4.main import main
from m4.run import origin, preflight
from m4.specs import DataSpec, ModalitySpec, TaskSpec

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
    given = f"--config.train.from={place / 'gone'}"
    assert run(place, "begun", given) == 0
    shutil.rmtree(place / "gone")
    assert run(place, "begun", given, "--mode=train") == 0
    assert run(place, "begun", given, "--mode=check") == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--config.train.from=nowhere"], 2, "train.from=nowhere: no such folder"),
        (["--config.train.from=~nobody_xyz/foo"], 2, "train.from=~nobody_xyz/foo: no such user"),
        ([f"--config.train.from={'x' * 300}"], 2, f"train.from={'x' * 300}: "),
        (["--config.data.calibration=0.3"], 2, "may have trained it (data of another seed and cal"),
        (["--config.method.width=16"], 2, "differs: method.width: 8 -> 16"),
        (["--config.data.options.modalities=('static','vitals')"], 2, "vitals, static there"),
    ],
)
def test_refused(place, capsys, request, args, code, words):
    work = f"refused{len(request.node.name)}"
    given = [f"--config.train.from={place / 'w'}"] if "from" not in args[0] else []
    assert run(place, work, *given, *args) == code
    assert words in capsys.readouterr().err
    shutil.rmtree(place / work)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_damaged_configuration_is_refused_before_data_are_built(tmp_path, content):
    (step := tmp_path / origin.BEST / "1").mkdir(parents=True)
    for name in ("_CHECKPOINT_METADATA", "state", "meta"):
        (step / name).mkdir()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    config = ml_collections.ConfigDict({"train": {"from": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"config\.json"):
        origin.require(config, spec_of(LOS), tmp_path / "own")


def loaded(place, *args):
    """(configuration that begins from 'w', the schema of its data)."""
    given = [f"--config={place / 'c.py'}:", f"--workdir={place / 'n'}", "--config.seed=3"]
    config = configs.load(configs.parse([*given, f"--config.train.from={place / 'w'}", *args]))
    return config, preflight.schema(config)


def test_titles_and_units_are_no_other_modalities(place):
    """A manifest has no words; a data set of today may have some."""
    config, spec = loaded(place)
    titled = [
        dataclasses.replace(m, title="T", titles=m.features, units=("1",) * len(m.features))
        for m in spec.modalities
    ]
    origin.require(config, dataclasses.replace(spec, modalities=tuple(titled)), place / "n")


def test_whom_calibration_sets_aside_did_not_train_the_source(place):
    config, spec = loaded(place, "--config.data.calibration=0.3")
    with pytest.raises(ConfigError, match="of another calibration there"):
        origin.require(config, spec, place / "n")
    source = place / "aside"
    shutil.copytree(place / "w", source)
    manifest = json.loads((source / "data.json").read_text())
    manifest["calibration"] = 0.3
    (source / "data.json").write_text(json.dumps(seal.sealed(manifest)))
    config.train["from"] = str(source)
    origin.require(config, spec, place / "n")
    config.seed = 4
    with pytest.raises(ConfigError, match="of another seed there"):
        origin.require(config, spec, place / "n")
    config.seed = 3
    for step in (source / "checkpoints/best").glob("[0-9]*"):
        note = json.loads((step / "meta/metadata").read_text())
        note["note"]["imported"] = "theirs.pt"
        (step / "meta/metadata").write_text(json.dumps(seal.sealed(note)))
    with pytest.raises(ConfigError, match="whom an import was trained on is not known"):
        origin.require(config, spec, place / "n")


IHM, LOS, PHE, DEATH = (
    TaskSpec("ihm48", "binary"),
    TaskSpec("los", "regression", transform="log1p", loc=1.0),
    TaskSpec("phe", "multilabel", dim=5),
    TaskSpec("death", "binary"),
)


def spec_of(*tasks):
    return DataSpec((ModalitySpec("static", "table", (3,)),), tasks)


def begun(before, now, name="m3h"):
    """(arrays there, fresh arrays, arrays to begin with, what is said to be fresh in part)."""
    sizes = {"m3h": {"task_width": 8}, "m4oe": {"num_heads": 2, "moe": {"hidden": 8}}}
    method = {"name": name, "width": 8} | sizes.get(name, {})
    config = ml_collections.ConfigDict({"method": method, "text": {}, "image": {}, "conv": {}})
    there, here = origin._shapes(config, before), origin._shapes(config, now)
    rng = np.random.default_rng(0)
    old, fresh = ({k: rng.normal(size=s) for k, s in x.items()} for x in (there, here))
    taken, partly, wrong = origin._taken(config, old, fresh, before, now)
    assert not wrong
    return old, fresh, taken, partly


def test_rows_of_stacked_heads_follow_their_tasks():
    head, every = "heads.dim_1.kernel", "cross_task.task"
    old, _, taken, partly = begun(spec_of(IHM, LOS, PHE), spec_of(LOS, IHM, PHE))
    np.testing.assert_array_equal(taken[head], old[head][[1, 0]])
    np.testing.assert_array_equal(taken[every], old[every][[1, 0, 2]])
    np.testing.assert_array_equal(taken["heads.dim_5.kernel"], old["heads.dim_5.kernel"])
    assert not partly
    old, fresh, taken, partly = begun(spec_of(IHM, LOS, PHE), spec_of(PHE, DEATH, LOS))
    np.testing.assert_array_equal(taken[head], [fresh[head][0], old[head][1]])
    assert f"{head} (death)" in partly
    old, _, taken, partly = begun(spec_of(IHM, LOS, PHE), spec_of(PHE, LOS))  # one left out
    np.testing.assert_array_equal(taken[head], old[head][[1]])
    assert not partly


def test_stacks_of_m4oe_follow_their_tasks():
    """A row per task; the gate scores every slot of every expert in one axis and begins anew."""
    before, now = spec_of(IHM, LOS, PHE), spec_of(PHE, DEATH, IHM)
    old, fresh, taken, partly = begun(before, now, "m4oe")
    stacks = {"task", "norm.bias", "norm.scale", "project.bias", "project.kernel"}
    for name in stacks:
        np.testing.assert_array_equal(taken[name][[0, 2]], old[name][[2, 0]], err_msg=name)
        np.testing.assert_array_equal(taken[name][1], fresh[name][1], err_msg=name)
        assert f"{name} (death)" in partly
    assert fresh.keys() - taken.keys() == {"mtoe_experts.gate_phi"}
    _, fresh, taken, partly = begun(before, before, "m4oe")
    assert fresh.keys() == taken.keys() and not partly


def test_a_task_of_another_meaning_begins_anew_in_stacked_arrays():
    other = dataclasses.replace(LOS, transform="none")
    head, before, now = "heads.dim_1.kernel", spec_of(IHM, LOS, PHE), spec_of(IHM, other, PHE)
    old, fresh, taken, partly = begun(before, now)
    np.testing.assert_array_equal(taken[head], [old[head][0], fresh[head][1]])
    assert f"{head} (los)" in partly
    _, _, taken, _ = begun(spec_of(LOS, PHE), spec_of(other, PHE))
    assert head not in taken and "heads.dim_5.kernel" in taken


def test_targets_of_another_scale_are_named():
    other = dataclasses.replace(LOS, scale=2.0)
    lines = origin._scales(spec_of(IHM, LOS), spec_of(other, IHM))
    assert lines == ["los: loc 1 -> 1, scale 1 -> 2"]


def test_refused_without_a_sound_checkpoint(place, capsys):
    shutil.copytree(place / "w", place / "own")
    shutil.rmtree(place / "own/checkpoints/last")
    assert run(place, "own", f"--config.train.from={place / 'own'}", "--force=config") == 2
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
