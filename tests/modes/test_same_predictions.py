"""`--mode=predict` says the same of a patient whatever the batches and processes are.

Nothing is trained: a work directory is given random parameters. Batches of 1, 3, 7 and 64 rows, the
last filled up; rows in another order, with garbage where a row has nothing; two processes.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from m4 import config as configs
from m4.config import code
from m4.data.loader import eval_batches
from m4.main import main
from m4.moe import options
from m4.run import placed, trained
from m4.run.setup import make_setup
from m4.run.workspace import prepare
from m4.train.checkpoint import Checkpoints
from tests import properties

CONFIG = """
import ml_collections
def get_config(variant='fusemoe'):
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic', options=dict(
            modalities=('vitals', 'notes', 'cxr'), tasks=('ihm48', 'los'), num_patients=80,
            steps=6, dims=dict(notes=5, cxr=4))),
        method=dict(name=variant),
        optim=dict(lr=0.01),
        train=dict(steps=1, batch_size=8, select='ihm48/log_loss'),
        eval=dict(batch_size=64, bootstrap=5, subsets=False, baselines=False),
        mesh=dict(data=1),
    ))
"""
ROOT = Path(__file__).parents[2]
SMALL = {"width": 8, "depth": 1, "num_queries": 4, "embed_time": 8, "num_patches": 2}
SMALL |= {"num_heads": 2, "mlp": 8, "task_width": 8, "fusion_depth": 1, "modality_experts": 2}
SMALL |= {"fusion_experts": 2}
FILES = [(name, f) for name in code.method_names() for f in code.method_modules(name)]
WITH_GROUPS = {
    "group_limited": ["--config.method.moe.num_groups=2",
                      "--config.method.moe.router_options.groups_kept=1"],
    "hierarchical": ["--config.method.moe.num_groups=2"],
    "product_keys": ["--config.method.moe.num_experts=9"],
    "expert_choice": ["--config.method.moe.share=joint"],  # several gates cannot choose together
    "soft": ["--config.method.moe.share=joint"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where data are built once."""
    place = tmp_path_factory.mktemp("same")
    (place / "c.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_DATA_DIR", str(place / "data"))
        yield place


def flags(folder, name, *args, fidelity="m4"):
    """Of a small method."""
    cls = code.method_class(name, fidelity)
    own = {n: x for n, x in SMALL.items() if hasattr(cls, n)}
    sizes = [f"--config.method.{n}={x}" for n, x in own.items()]
    if hasattr(cls, "moe"):
        sizes += [
            f"--config.method.moe.{n}={x}" for n, x in {"num_experts": 8, "hidden": 6}.items()
        ]
    return [
        f"--config={folder / 'c.py'}:{name}", f"--config.method.fidelity={fidelity}", *sizes, *args,
    ]  # fmt: skip


def made(folder, given):
    """A work directory as after training, of random parameters."""
    work = folder / f"w{len([*folder.iterdir()])}"
    work.mkdir()
    config = configs.load(configs.parse([*given, f"--workdir={work}"]))
    setup = make_setup(config, prepare(config))
    shapes = setup.state.eval_params
    params = properties.random_like(shapes)
    params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, shapes)
    (work / "config.json").write_text(configs.to_json(config))
    trained.keep(setup.data, work)
    best = Checkpoints(work / "checkpoints/best", keep=1)
    note = {"seed": config.seed, "data": setup.data.name, "step": 0, "value": None}
    best.save(0, {"params": params}, note)
    best.wait()
    best.close()
    return work


def predicted(work, *args):
    """Columns of what the command writes, rows in the order of the split."""
    assert main(["--mode=predict", f"--workdir={work}", *args]) == 0
    return read(work)


def read(work):
    """Columns of what was written."""
    found = pq.read_table(work / "predictions/test.parquet").sort_by("row").to_pydict()
    return {name: np.array(x) for name, x in found.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if x.dtype.kind == "f":
            np.testing.assert_allclose(found[name], x, rtol=2e-5, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], x)


def scrambled(store, batch_size, **_):
    """The split in another order, with garbage wherever a row has nothing."""
    (whole,) = eval_batches(store, len(store))
    whole = properties.pollute(whole, 1e30)
    rows = np.random.default_rng(0).permutation(len(store))
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batch = properties.take(whole, np.resize(some, batch_size))
        real = np.arange(batch_size) < len(some)
        for row in np.flatnonzero(~real):
            batch = properties.drop_modalities(batch, row)
        yield batch.replace(weight=real.astype(np.float32), uid=np.where(real, batch.uid, -1))


def no_batch_matters(work, monkeypatch, sizes=(1, 3, 7)):
    """The property; raises AssertionError."""
    expected = predicted(work)
    floats = [x for x in expected.values() if x.dtype.kind == "f"]
    assert len(floats) == 2 and all(np.ptp(x) > 1e-4 for x in floats)  # something is said
    for size in sizes:
        same(predicted(work, f"--config.eval.batch_size={size}"), expected)
    with monkeypatch.context() as patch:
        patch.setattr(placed, "eval_batches", scrambled)
        same(predicted(work, "--config.eval.batch_size=7"), expected)


def test_of_a_router_whose_tokens_compete(folder, monkeypatch):
    given = flags(folder, "flexmoe", "--config.method.moe.router=expert_choice")
    no_batch_matters(made(folder, given), monkeypatch, sizes=(7,))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fidelity"), FILES)
def test_of_every_method(folder, monkeypatch, name, fidelity):
    work = made(folder, flags(folder, name, fidelity=fidelity))
    if (name, fidelity) == ("fusemoe", "released"):  # its rows mix: docs/methods/fusemoe.md
        with pytest.raises(AssertionError):
            no_batch_matters(work, monkeypatch)
    else:
        no_batch_matters(work, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("router", options.known("router"))
def test_of_every_router(folder, monkeypatch, router):
    given = flags(folder, "fusemoe", f"--config.method.moe.router={router}")
    no_batch_matters(made(folder, [*given, *WITH_GROUPS.get(router, ())]), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("gate", options.known("gate"))
def test_of_every_gate(folder, monkeypatch, gate):
    given = flags(folder, "flexcare", f"--config.method.moe.gate={gate}")
    no_batch_matters(made(folder, given), monkeypatch, sizes=(3,))


READS = """
import os, pathlib, sys
from m4.data.store import Store
rows, read = {"train": [], "val": [], "test": []}, Store.read
def counted(self, uid, *rest):
    rows[self.split] += map(int, uid)
    return read(self, uid, *rest)
Store.read = counted
from m4.main import main
code = main(sys.argv[1:])
place = pathlib.Path(__file__).with_name("rows-" + os.environ["M4_PROCESS_ID"])
place.write_text(repr(rows["test"]))
sys.exit(code)
"""


def test_of_two_processes_each_of_which_reads_half(folder):
    """By `launch/local.py`, with gloo between them."""
    given = flags(folder, "fusemoe", "--config.eval.batch_size=6", "--config.mesh.data=2")
    work = made(folder, given)
    expected = predicted(work)
    (work / "predictions/test.parquet").unlink()
    (folder / "reads.py").write_text(READS)
    command = [sys.executable, str(ROOT / "launch/local.py"), "--procs=2", "--devices=1"]
    command += ["--module=reads", "--", "--mode=predict", f"--workdir={work}"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "M4_DATA_DIR": str(folder / "data")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    same(read(work), expected)
    a, b = (ast.literal_eval((folder / f"rows-{p}").read_text()) for p in (0, 1))
    assert sorted(a + b) == sorted(expected["row"].tolist()) and abs(len(a) - len(b)) <= 3


def over_the_batch(logits_NE, valid_N, *, k):
    """Experts choose from all tokens of a batch: known to be bad."""
    from m4.moe import routers

    return routers.expert_choice(logits_NE, valid_N, k=k)


@pytest.mark.slow
def test_the_property_sees_what_depends_on_the_batch(folder, monkeypatch):
    given = flags(folder, "flexmoe", f"--config.method.moe.router={__name__}:over_the_batch")
    with pytest.raises(AssertionError):
        no_batch_matters(made(folder, given), monkeypatch)
