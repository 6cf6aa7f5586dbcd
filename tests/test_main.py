"""The command line from end to end, with a small method on the generated cohort."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from m4 import atomic, seal
from m4.data.sets import synthetic
from m4.main import main
from m4.run import agreement
from m4.run.setup import corruption, weighted
from m4.train import preemption, verify
from tests import yardstick
from tests.data import test_missing

ROOT = Path(__file__).parents[1]
CONFIG = """
import ml_collections
VARIANTS = ('filed', 'free')
def get_config(variant=''):
    options = dict(modalities=('vitals', 'static'), tasks=('ihm48', 'los'), num_patients=150)
    config = dict(
        data=dict(name='synthetic', options=dict(options, steps=8)),
        method=dict(name='tests.toy:Toy', width=8),
        optim=dict(lr=0.01, ema=0.9, warmup_steps=1),
        train=dict(steps=6, batch_size=16, log_every=2, eval_every=3, save_every=3,
                   select='ihm48/auroc', modality_dropout=0.2),
        eval=dict(batch_size=16, bootstrap=10, baselines=False),
    )
    if variant == 'filed':
        config['data'] = dict(name='tests.toy_data', options=dict(needs_file='x.csv'))
        config['train']['select'] = 'death/auroc'
    return ml_collections.ConfigDict(config)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a configuration and a finished run of it in 'w'."""
    folder = tmp_path_factory.mktemp("main")
    (folder / "toy.py").write_text(CONFIG)
    assert run(folder) == 0
    return folder


def run(folder, *args, workdir="w", config="toy.py"):
    os.environ["M4_DATA_DIR"] = str(folder / "data")
    mask = os.umask(0o022)
    try:
        return main([f"--config={folder / config}", f"--workdir={folder / workdir}", *args])
    finally:
        os.umask(mask)
        del os.environ["M4_DATA_DIR"]


def lines(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "time/" not in k and k != seal.SUM} for row in rows]


def arrays(workdir, step):
    """Name -> value of everything in a checkpoint's state."""
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(workdir / "checkpoints" / "last" / str(step) / "state")
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {str(path): np.asarray(leaf) for path, leaf in leaves}


def test_a_run_leaves_what_it_promises(place):
    work = place / "w"
    for name in ("config.json", "run.json", "data.json", "results/test.json", "report.html"):
        assert (work / name).stat().st_size > 0, name
    assert not (work / "lock").exists()
    found = json.loads((work / "run.json").read_text())
    assert found["seed"] == 0 and found["versions"]["jax"] and found["data"]["fingerprint"]
    assert [row["step"] for row in lines(work)] == [2, 3, 3, 4, 6, 6]
    results = json.loads((work / "results/test.json").read_text())
    assert {s["task"] for s in results["scores"]} == {"ihm48", "los"}
    assert len(results["subsets"]) == 3  # two modalities: full and each alone
    private = [p for p in work.rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert private == []  # nothing that others may read


def test_resuming_gives_the_same_bits_as_running_through(place):
    work = place / "again"
    shutil.copytree(place / "w", work)
    before, numbers = arrays(work, 6), lines(work)
    shutil.rmtree(work / "checkpoints/last/6")  # as if killed after step 3's checkpoint
    (work / "checkpoints/last/6.orbax-checkpoint-tmp").mkdir()
    assert run(place, workdir="again") == 0
    after = arrays(work, 6)
    assert before.keys() == after.keys()
    for name in before:
        assert np.array_equal(before[name], after[name]), name
    assert lines(work) == numbers


def test_other_code_is_said_and_another_program_refused(place, monkeypatch, capsys):
    work = place / "skew"
    shutil.copytree(place / "w", work)
    shutil.rmtree(work / "checkpoints/last/6")
    monkeypatch.setattr(agreement, "code", lambda: "another")
    with jax.default_matmul_precision("highest"):
        assert run(place, workdir="skew") == 4
        said = capsys.readouterr().err
        assert (
            "the program that trains is not the one that made step 3 (changed: code of m4)" in said
        )
        assert [*(work / "checkpoints/last").iterdir()] == [work / "checkpoints/last/3"]
        assert run(place, "--force=program", workdir="skew") == 0
    shutil.rmtree(work / "checkpoints/last/6")
    assert run(place, workdir="skew") == 0
    assert "warning: step 3 was made by other: code of m4\n" in capsys.readouterr().out
    assert lines(work) == lines(place / "w")
    starts = json.loads((work / "run.json").read_text())["starts"]  # and none was forgotten
    assert [start["from_step"] for start in starts] == [0, 3, 3, 3]
    assert [start["code"] == "another" for start in starts] == [False, True, True, True]


def test_another_configuration_by_force_may_be_another_program(place, capsys):
    work = place / "smaller"
    shutil.copytree(place / "w", work)
    shutil.rmtree(work / "checkpoints/last/6")
    smaller = "--config.train.batch_size=8"
    assert run(place, smaller, workdir="smaller") == 2
    assert "--force=config to go on with this one" in capsys.readouterr().err
    assert run(place, smaller, "--force=config,program", workdir="smaller") == 0


def test_a_step_that_names_no_program_is_said(capsys):
    agreement.accept(None, {}, 3, force=False)(["program"])
    assert "step 3 was made by an older version" in capsys.readouterr().out
    agreement.accept(None, {}, 0, force=False)(["program"])
    assert capsys.readouterr().out == ""


def test_a_best_step_that_went_is_noticed(place, monkeypatch, capsys):
    work = place / "best"
    shutil.copytree(place / "w", work)
    best = work / "checkpoints/best"
    newest = max(int(path.name) for path in best.iterdir())
    named = verify.newest_note(work / "checkpoints/last")["best"]
    assert named["step"] == newest
    note = {"best": {"step": newest + 1, "digest": ""}}
    with monkeypatch.context() as patch:  # as if a later one had not been copied
        patch.setattr(verify, "newest_note", lambda folder: note)
        assert run(place, "--mode=eval", workdir="best") == 0
    said = capsys.readouterr().out
    assert f"warning: step {newest} is evaluated, since the best, {newest + 1}, is gone" in said
    shutil.rmtree(best)
    assert run(place, workdir="best") == 4  # before it trains on
    said = capsys.readouterr().err
    assert (
        f"step {newest} was the best so far, but it is gone; copy it back, or give --force=best"
        in said
    )


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_goes_on_without_its_best_step_if_told_so(place, capsys, step):
    """Taken up in the middle, or finished: then its last step is all that is left to choose."""
    work = place / f"lost-{step}"
    shutil.copytree(place / "w", work)
    shutil.rmtree(work / "checkpoints/best")
    if step == 3:
        shutil.rmtree(work / "checkpoints/last/6")
    assert run(place, "--mode=eval", workdir=work.name) == 4
    assert "the command that trained, with --force=best, chooses one" in capsys.readouterr().err
    assert run(place, workdir=work.name) == 4
    assert f"among the steps from {step} on" in capsys.readouterr().err
    assert run(place, "--force=best", workdir=work.name) == 0
    assert "was the best so far, but it is gone; one is chosen" in capsys.readouterr().out
    kept = {int(path.name) for path in (work / "checkpoints/best").iterdir()}
    assert kept and min(kept) >= step
    assert verify.newest_note(work / "checkpoints/last")["best"]["step"] == max(kept)
    before, after = arrays(place / "w", 6), arrays(work, 6)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert run(place, workdir=work.name) == 0  # and needs no force any more
    assert main(["--mode=check", f"--workdir={work}"]) == 0


def test_stopping_is_exit_75_and_the_same_command_goes_on(place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Signals, "stop", lambda signals, step: step == 2)
        assert run(place, workdir="stopped") == 75
    assert "stopped at step 2" in capsys.readouterr().err
    assert run(place, workdir="stopped") == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert lines(place / "stopped") == lines(place / "w")
    before, after = arrays(place / "w", 6), arrays(place / "stopped", 6)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_finished_run_is_only_evaluated_again(place, capsys):
    before = lines(place / "w")
    assert run(place) == 0
    assert lines(place / "w") == before
    assert "compiled in" not in capsys.readouterr().out


def test_another_configuration_is_refused(place, capsys):
    assert run(place, "--config.optim.lr=0.02") == 2
    assert "optim.lr: 0.01 -> 0.02" in capsys.readouterr().err
    assert run(place, "--config.mesh.data=16") == 2  # harmless for the mathematics, but too large
    assert "found 8" in capsys.readouterr().err


def test_a_run_refused_before_it_began_leaves_the_folder_to_the_corrected_one(place, capsys):
    own = f"--config.data.dir={place / 'unbuilt'}"
    assert run(place, "--config.mesh.data=16", own, workdir="refused") == 2
    assert "found 8" in capsys.readouterr().err
    assert not (place / "unbuilt").exists()  # nothing was built for it
    assert run(place, "--config.train.steps=1", workdir="refused") == 0


def test_eval_predict_check(place, capsys):
    assert run(place, "--mode=eval", "--config.eval.bootstrap=5") == 0
    results = json.loads((place / "w/results/test.json").read_text())
    assert results["bootstrap"]["draws"] == 5
    assert run(place, "--mode=predict") == 0
    path = place / "w/predictions/test.parquet"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    table = pq.read_table(path)
    assert table.column_names == ["row", "patient", "ihm48", "los"]
    assert table.num_rows == results["rows"]
    assert all(len(p) == 32 for p in table["patient"].to_pylist())
    first = table["patient"].to_pylist()
    assert run(place, "--mode=predict") == 0
    assert pq.read_table(path)["patient"].to_pylist() == first  # the key stays
    capsys.readouterr()
    assert run(place, "--mode=check", workdir="unused") == 0
    text = capsys.readouterr().out
    assert "encode_vitals/kernel" in text and "all is well" in text
    assert not (place / "unused").exists()


def test_check_verifies_checkpoints_without_data_or_configuration(place, capsys):
    work = place / "scrubbed"
    shutil.copytree(place / "w", work)
    assert main(["--mode=check", f"--workdir={work}"]) == 0
    text = capsys.readouterr().out
    assert "checkpoint last/6: sound" in text and "checkpoint best/" in text
    (work / "checkpoints/last/3/meta/metadata").write_text("{}")
    assert main(["--mode=check", f"--workdir={work}"]) == 4
    found = capsys.readouterr()
    assert "checkpoint last/3: DAMAGED" in found.out and "no digests" in found.err
    assert (work / "checkpoints/last/3").exists()


def test_a_checkpoint_of_another_configuration_is_refused(place, capsys):
    work = place / "moved"
    shutil.copytree(place / "w", work)
    (work / "config.json").unlink()
    assert run(place, "--config.optim.lr=0.02", workdir="moved") == 4
    found = capsys.readouterr().err
    assert "trained with another configuration" in found and "optim.lr: 0.01 -> 0.02" in found
    assert not [*work.rglob("*.corrupt-*")]


def test_no_checkpoint_is_exit_4(place, capsys):
    (place / "empty").mkdir()
    assert run(place, "--mode=eval", workdir="empty") == 4
    assert "holds no checkpoint" in capsys.readouterr().err
    assert run(place, "--mode=eval", workdir="nowhere") == 2


def test_a_report_into_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/test.json").write_text("{}")

    def refused(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "write", refused)
    assert main(["--mode=report", f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"m4: config error: --workdir={tmp_path}: cannot be used (Permission denied)\n"
    )


def test_other_data_is_refused(place, capsys):
    work = place / "other"
    shutil.copytree(place / "w", work)
    changed = "--config.data.options.num_patients=160"
    assert run(place, changed, "--force=config", workdir="other") == 4
    assert "trained on data" in capsys.readouterr().err


def script(*args, **env):
    code = (
        "import sys, time; from m4.main import main; code = main(sys.argv[1:]);"
        "names = ('jax', 'orbax'); print(time.process_time(), *(n in sys.modules for n in names));"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env, check=False
    )


def test_missing_data_is_exit_3_at_once(place):
    def seconds():
        done = script(f"--config={place / 'toy.py'}:filed", M4_RAW_DIR=str(place / "raw"))
        assert done.returncode == 3
        assert "x.csv is missing" in done.stderr and "generated" in done.stderr
        assert f"needs no files: --config={place / 'toy.py'}:free" in done.stderr
        spent, _, orbax_loaded = done.stdout.split()
        assert orbax_loaded == "False"
        return float(spent)

    assert yardstick.in_imports(seconds) < 4  # some 1.3 of 0.5 s


def test_select_of_another_data_set_is_refused_at_once(place):
    done = script(f"--config={place / 'toy.py'}", "--config.train.select=ihm24/auroc")
    assert done.returncode == 2
    assert "tasks are ihm48, los; did you mean ihm48?" in done.stderr
    assert done.stdout.split()[2] == "False"


def test_report_needs_no_jax(place):
    (place / "w/report.html").unlink()
    done = script("--mode=report", f"--workdir={place / 'w'}")
    assert done.returncode == 0, done.stderr
    assert (place / "w/report.html").stat().st_size > 0
    assert done.stdout.split()[-2] == "False"


def test_what_the_method_refuses_is_said_before_data_are_built(place, tmp_path, capsys):
    data = f"--config.data.dir={tmp_path}"
    wrong = "--config.method.flavour=bitter"
    assert run(place, wrong, data, workdir="bitter") == 2
    assert "flavour='bitter' is not plain or fancy" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_help_and_debug(place, capsys):
    assert main(["--help"]) == 0
    assert "exit codes" in capsys.readouterr().out
    assert main(["--nope", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_task_weights_reach_the_schema_and_are_refused_early(place, capsys):
    spec = synthetic.spec(tasks=("ihm48", "los"))
    assert [t.weight for t in weighted(spec, {"los": 0.25}).tasks] == [1.0, 0.25]
    assert weighted(spec, {}) == spec
    assert run(place, "--config.train.task_weights.ihm=2.0", workdir="never") == 2
    assert "tasks are ihm48, los; did you mean ihm48?" in capsys.readouterr().err
    assert not (place / "never").exists()


def test_corruption_chains_what_the_config_asks_for():
    spec, batch = test_missing.SPEC, test_missing.full_batch(400)
    off = {"modality_dropout": 0.0, "segment_dropout": 0.0, "segment_share": 0.5, "augment": {}}
    assert corruption(spec, ml_collections.ConfigDict(off)) is None

    def kept(**fields):
        corrupt = corruption(spec, ml_collections.ConfigDict(off | fields))
        inputs = corrupt(batch, np.random.default_rng(0)).inputs
        return inputs["vitals"].mask.sum(), inputs["static"].present.sum()

    vitals, static = kept(segment_dropout=0.9)
    assert vitals < 4 * 400 and static == 400  # a table has no time
    fewer, some = kept(modality_dropout=0.5, segment_dropout=0.9)
    assert fewer < vitals and some < 400
