"""Runs whose batches are cut to buckets: what is compiled, what is resumed, what comes out."""

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from m4 import sharding
from m4.data.batch import empty
from m4.errors import ConfigError
from m4.main import main
from m4.methods.flexcare.paper import PaperFlexCare
from m4.moe.options import MoEOptions
from m4.run import programs
from m4.run.setup import like, require_any_length
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.train import loop

CONFIG = """
import ml_collections
def get_config(variant=''):
    data = dict(modalities=('vitals', 'static'), tasks=('ihm48',), num_patients=150, steps=8,
                rows_per_hour=0.1)
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic', options=data),
        method=dict(name='tests.toy:Toy', width=4),
        optim=dict(lr=0.01),
        train=dict(steps=10, batch_size=16, log_every=5, eval_every=5, save_every=5,
                   select='ihm48/auroc', modality_dropout=0.2, buckets=(3, 5)),
        eval=dict(batch_size=16, bootstrap=5, baselines=False, subsets=False),
    ))
"""
COMPILED = "/jax/core/compile/backend_compile_duration"


def run(folder, *args, workdir="w"):
    return main([f"--config={folder / 'c.py'}", f"--workdir={folder / workdir}", *args])


def arrays(workdir, step):
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(workdir / "checkpoints" / "last" / str(step) / "state")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def predictions(folder, *args):
    assert run(folder, "--mode=predict", *args) == 0
    return pq.read_table(folder / "w/predictions/test.parquet").to_pydict()


def test_a_run_compiles_every_bucket_before_it_begins(folder, monkeypatch, capsys):
    lowered, used, during = [], [], []
    original, train, call = jax.stages.Lowered.compile, loop.run, programs.ByLength.__call__

    def compile_(self, *args, **kwargs):
        lowered.append(self)
        return original(self, *args, **kwargs)

    def loop_run(*args, **kwargs):
        before = len(lowered)
        during.append(before)
        state = train(*args, **kwargs)
        assert len(lowered) == before
        return state

    def called(self, *args):
        used.append((len(args), *programs.lengths(next(a for a in args if hasattr(a, "uid")))))
        return call(self, *args)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    monkeypatch.setattr(loop, "run", loop_run)
    monkeypatch.setattr(programs.ByLength, "__call__", called)
    assert run(folder) == 0, capsys.readouterr().err
    assert len(during) == 1 and during[0] == 1 + 3 + 3  # init; predictions and steps of 3 buckets
    assert len(lowered) == during[0]
    # static has one position, vitals as many as the bucket; all of three arguments
    assert {*used} == {(3, 1, 3), (3, 1, 5), (3, 1, 8)}

    # Resuming in the middle of an epoch (150 patients, some 7 batches) gives the same bits.
    before = arrays(folder / "w", 10)
    again = folder / "again"
    shutil.copytree(folder / "w", again)
    shutil.rmtree(again / "checkpoints/last/10")
    assert run(folder, workdir="again") == 0
    jax.tree.map(np.testing.assert_array_equal, arrays(again, 10), before)

    # Predictions come in the order of the records, and are those of whole batches.
    cut, whole = predictions(folder), predictions(folder, "--config.train.buckets=()")
    assert cut["row"] == whole["row"] == sorted(cut["row"])
    assert cut["patient"] == whole["patient"]
    np.testing.assert_allclose(cut["ihm48"], whole["ihm48"], rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("(5,3)", "train.buckets=(5, 3): must be lengths that increase, from 1 on"),
        ("(0,3)", "must be lengths that increase"),
        ("(2.5,3)", "must be lengths that increase"),
        ("3", "train.buckets=3: must be a tuple"),
        ("(3,9)", "train.buckets=(3, 9): must be at most 8"),
    ],
)
def test_wrong_buckets_are_one_line(folder, capsys, value, match):
    assert run(folder, f"--config.train.buckets={value}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert match in line


def test_a_method_that_has_parameters_per_position_is_refused():
    spec = DataSpec(
        (ModalitySpec("vitals", "series", (6, 2)), ModalitySpec("notes", "vectors", (4, 3))),
        (TaskSpec("death", "binary"),),
        hours=4.0,
    )
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1, "tensor": 1})
    moe = MoEOptions("task_additive", "noisy_top_k", num_experts=3, hidden=8)
    method = PaperFlexCare(spec, moe, width=8, depth=1, mlp=8)

    def require(length):
        batches = tuple(like(cut, 2, mesh) for cut in (spec.cut(length), spec))
        require_any_length(method, batches, mesh)

    with pytest.raises(ConfigError, match=r"notes/position has shape \(4, 8\), in shorter .*3, 8"):
        require(3)
    require(5)  # a token per hour of vitals, and notes are not cut


def test_a_batch_of_no_bucket_is_a_type_error():
    spec = DataSpec((ModalitySpec("vitals", "series", (6, 2)),), (TaskSpec("death", "binary"),))
    by_length = programs.ByLength({(6,): lambda batch: "whole", (3,): lambda batch: "cut"})
    assert by_length(empty(spec.cut(3), 2)) == "cut" and by_length(empty(spec, 2)) == "whole"
    with pytest.raises(TypeError, match=r"no program for lengths \(4,\)"):
        by_length(empty(spec.cut(4), 2))
