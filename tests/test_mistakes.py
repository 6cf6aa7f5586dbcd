"""Typical mistakes, as they are typed: each is one line with the field and what to do instead.

All in one process, and before anything is built or trained.
"""

from pathlib import Path

import pytest

from m4.__main__ import main

C = "--config=fusemoe_mimic:tiny"
S = f"{C} --set "
WARD = Path(__file__).parents[1] / "docs/example/ward.toml"
OWN = f"--config=own --set data.options.file={WARD} --set "
# What is typed, exit code, what the (only, or last) line says.
MISTAKES = [
    # names of configurations
    ("--config=fusemoe_mimc:tiny", 2, "did you mean configs/fusemoe_mimic.py?"),
    ("--config=configs/fusemoe_mimc.py", 2, "did you mean configs/fusemoe_mimic.py?"),
    ("--config=fusemoe_mimic:small", 2, "it has: demo, synthetic, "),
    ("--config=fusemoe_mimic:tinny", 2, "did you mean fusemoe_mimic:tiny?"),
    ("--config=support2:tiny", 2, "did you mean support2:"),
    ("--config=physionet2012", 2, "or configs/fusemoe_physionet2012.py?"),
    ("fusemoe_mimic:tiny", 2, "did you mean --config=fusemoe_mimic:tiny?"),
    ("configs/fusemoe_mimic.py", 2, "did you mean --config=configs/fusemoe_mimic.py?"),
    ("--config=done/config.json", 2, "--config_json reads this one"),
    ("--config=https://example.org/x.py", 2, "must be a local file"),
    ("--config_json=done/config.jsn", 2, "done/config.jsn: cannot be read (No such file"),
    ("--config", 2, "--config: needs a value"),
    # flags
    ("--cfg=fusemoe_mimic:tiny", 2, "did you mean --config?"),
    ("--output_dir=runs/x", 2, "--output_dir: unknown flag; did you mean --workdir?"),
    ("--work-dir=runs/x", 2, "did you mean --workdir?"),
    ("--force_config", 2, "did you mean --force?"),
    ("--lr=0.1", 2, "--lr: unknown flag; did you mean --set optim.lr=0.1?"),
    ("--learning-rate=0.1", 2, "did you mean --set optim.lr=0.1?"),
    ("--batch_size=8", 2, "did you mean --set train.batch_size=8?"),
    ("--seed=3", 2, "did you mean --set seed=3?"),
    (f"{C} --train.steps=5", 2, "did you mean --set train.steps=5?"),
    (f"{C} train.steps=5", 2, "a field is replaced by --set train.steps=5"),
    (f"{S}train.steps", 2, "needs a field and a value, --set train.steps=500"),
    (f"{C} --workdir=", 2, "--workdir: needs a value"),
    (f"{C} --workdir=gs://b/x", 2, "a bucket cannot be called 'b'"),
    (f"{C} --workdir=gs://my-runs/a --mode=sweep", 2, "needs a local work directory"),
    (f"{C} --workdir=s3://b/x", 2, "mount it (a bucket through gcsfuse or s3fs"),
    (f"{C} --mode=train --mode=eval", 2, "--mode: is given twice, as train and as eval"),
    ("--completion=tcsh", 2, "--completion=tcsh: must be one of bash, zsh, fish"),
    ("predict --workdir=done --topology=v5p", 2, "--topology: goes with --mode=plan"),
    # modes, tools and work directories
    (f"{C} --mode=test", 2, "did you mean eval?"),
    (f"{C} --mode=evaluate", 2, "did you mean eval?"),
    (f"{C} --mode=infer", 2, "did you mean predict?"),
    ("evaluate --workdir=done", 2, "evaluate: unknown flag or command; did you mean eval?"),
    ("dta describe x", 2, "dta: unknown flag or command; did you mean data?"),
    ("data descrbe x", 2, "descrbe: no such command; did you mean describe?"),
    ("data describe /nowhere", 3, "/nowhere: no such folder"),
    ("data download mimiciv raw", 2, "mimiciv is not to be had without more ado: MIMIC-IV needs"),
    ("eval --workdir=/nowhere", 2, "--workdir=/nowhere: no such work directory"),
    ("predict --workdir=/nowhere", 2, "--workdir=/nowhere: no such work directory"),
    ("train --workdir=/nowhere", 2, "--config=... trains one there (--list)"),
    ("report --workdir=/nowhere", 2, "--workdir=/nowhere: no such folder"),
    ("check --workdir=/nowhere", 2, "--workdir=/nowhere: no such folder"),
    ("predict --workdir=empty", 2, "--workdir=empty: holds no run (no config.json)"),
    ("predict", 2, "--workdir: is missing; --mode=predict needs that of a run"),
    ("predict --workdir=done --on=/nowhere", 3, "--on=/nowhere: no such folder"),
    ("predict --workdir=done --on=empty", 3, "done/data.json: no manifest of the training data"),
    ("report --workdir=file/x", 2, "--workdir=file/x: file is a file"),
    (f"{C} --workdir=file", 2, "--workdir=file: file is a file"),
    (f"{S}data.dir=file/x", 2, "data.dir=file/x: file is a file"),
    ("lab --out=file/x --report", 2, "--out=file/x: file is a file"),
    ("export --workdir=done --out=file/x.m4", 2, "out=file/x.m4: file is a file"),
    # methods, gates and routers
    (f"{C} --config.method=m3h", 2, "did you mean --set method.name=...?"),
    (f"{S}method.name=flexmo", 2, "did you mean flexmoe or"),
    (f"{S}method.name=m4oe", 2, "is made for fusemoe and sets method.moe.share, method.moe.top_k"),
    (f"{S}method.name=m4oe", 2, "which m4oe hasn't; take --config=configs/m4oe_mimic.py"),
    (f"{S}method.moe.gate=softmax", 2, "softmax is called linear here"),
    (f"{S}method.moe.gate=laplacian", 2, "laplacian is called laplace here"),
    (f"{S}method.moe.gate=softmx", 2, "did you mean softmax, which is called linear here?"),
    (f"{S}method.moe.router=top2", 2, "'package.module:name'; did you mean top_k?"),
    (f"{S}method.moe.gate=topk", 2, "did you mean method.moe.router=top_k?"),
    (f"{S}method.moe.router=switch", 2, "did you mean top_k"),
    (f"{S}method.moe.top_k=99", 2, "try --config.method.moe.top_k=4"),
    (f"{S}method.moe.num_experts=0", 2, "must be an integer at least 1"),
    (f"{S}method.fidelity=original", 2, "original is called released here"),
    # other fields
    (f"{S}train.step=5", 2, "train.step: no such field; did you mean steps?"),
    (f"{S}lr=0.1", 2, "lr: no such field; did you mean optim.lr?"),
    (f"{S}train.epochs=3", 2, "did you mean train.steps?"),
    (f"{S}optim.name=rmsprop", 2, "did you mean adamw?"),
    (f"{S}optim.lr=-1", 2, "must be a finite number above 0"),
    (f"{S}optim.lr=1e-3e", 2, "optim.lr=1e-3e: must be a finite number above 0"),
    (f"{S}train.precision=bf16", 2, "bf16 is called bfloat16 here"),
    (f"{S}train.precision=fp16", 2, "did you mean bfloat16"),
    (f"{S}seed=0,1,2", 2, "--mode=sweep takes several --seeds"),
    (f"{S}eval.batch_size=0", 2, "eval.batch_size=0: must be an integer at least 1"),
    # data
    (f"{S}train.select=mortality/auroc", 2, "tasks are ihm48, los, los_under_96h, phe"),
    (f"{S}train.select=ihm48/auc", 2, "did you mean auroc"),
    (f"{S}train.select=auroc", 2, "must be '<task>/<metric>', as ihm48/auroc"),
    (f"{S}train.select=", 2, "must be '<task>/<metric>', as ihm48/auroc; tasks are ihm48, los"),
    (f"{OWN}data.raw_dir={WARD.parents[1]}", 2, "as died/auroc; tasks are died, days"),
    (f"{OWN}train.select=days/auc --set train.steps=0", 2, "a regression task has mae"),
    (f"{S}data.name=mimic", 2, "did you mean mimiciv?"),
    (f"{S}data.name=mimiciv", 2, "is made for synthetic and sets data.options.num_patients"),
    (f"{S}data.raw_dir=s3://x/y", 2, "must be a local path"),
    (f"{S}data.options.fiel=x", 2, "data.options.fiel: no such field"),
    (f"{S}data.options.modalities=vitals", 2, "must be a tuple of values, ('vitals',)"),
    ("--config=fusemoe_physionet2012 --set data.raw_dir=empty", 3, "set-a.tar.gz is missing"),
    ("--config=fusemoe_eicu_meds --set data.options.file=no.toml", 2, "no such file; shipped"),
    ("--config=fusemoe_eicu_meds --set data.options.file=", 2, "is missing, the definition (TOML)"),
    ("--config=fusemoe_eicu_meds --set data.raw_dir=empty", 3, "is missing (labels of"),
    (f"{OWN}data.raw_dir=empty --set train.select=died/auroc", 3, "ward.csv is missing (labels of"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty folder, and one with the configuration of a run."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("M4_RAW_DIR", "")
        patch.setenv("M4_DATA_DIR", "")
        (folder / "done").mkdir()
        text = '{"data": {"name": "synthetic"}, "method": {"name": "m4oe"}, "optim": {"lr": 0.1},'
        text += '"train": {"steps": 1, "batch_size": 2, "select": "ihm48/auroc"},'
        (folder / "done/config.json").write_text(text + '"eval": {"batch_size": 2}}')
        yield folder


def test_there_are_at_least_sixty():
    assert len({typed for typed, _, _ in MISTAKES}) >= 60


@pytest.mark.parametrize(("typed", "code", "says"), MISTAKES, ids=lambda x: str(x).split(C)[-1])
def test_a_mistake_is_one_line_that_helps(typed, code, says, place, capsys):
    before = {*place.rglob("*")}
    extra = ["--workdir=w"] if typed.startswith(C) and "--workdir" not in typed else []
    assert main([*typed.split(" "), *extra]) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("m4: ")]
    assert says in err and not out and len(lines) == len(err.splitlines())
    assert len(lines) == 1 or code == 3 or len({line.split(":")[2] for line in lines}) == len(lines)
    assert "internal error" not in err and {*place.rglob("*")} == before
    if "raw_dir=empty" in typed:  # what is missing is the last that one reads
        assert lines[-1].endswith(("more files", "events)")) or " is missing" in lines[-1]
