"""The table of arms in docs/own-data.md: configs/own.py changed, tested out of three folds.

    python docs/site/own_defaults.py            # half an hour of one core, into runs/own_defaults

Open sets of 178 to 1,500 records, small on purpose: three of scikit-learn's, whose columns are cut
into three modalities of which a row lacks each with chance 0.35 (never all); 1,500 patients of
SUPPORT2 and the eICU demo, whose raw files lie below M4_RAW_DIR. All arms have one split. What is
finished is not run again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import datasets

OUT, SOURCE = Path("runs/own_defaults"), Path(os.environ.get("M4_RAW_DIR", "raw"))
SETS = {"cancer": "y/auroc", "wine": "y/auroc_macro", "diabetes": "y/r2"}
SETS |= {"support2": "hospital_death/auroc", "eicu": "hospital_mortality/auroc"}
FLAGS = "--mode=crossval --config=configs/own.py --set data.seed=0 --set data.options.num_folds=3"
FLAGS += " --set eval.subsets=false --set eval.baselines=false --set eval.bootstrap=200"
FLAGS += " --set train.compile=some"
M3H = "method.name=m3h method.width=32 method.task_width=64 method.task_weighting=uniform"
ARMS = {"shipped": "", "concat": "method.name=concat", "m3h": M3H, "lr": "optim.lr=0.003"}
ARMS |= {"dropout": "method.dropout=0.2", "concat-dropout": "method.name=concat method.dropout=0.2"}


def save(name, task, modalities, **frames):
    """The frames as CSV, and the definition that reads them."""
    (OUT / "raw" / name).mkdir(parents=True, exist_ok=True)
    for file, frame in frames.items():
        frame.to_csv(OUT / "raw" / name / f"{file}.csv", index=False)
    head = '[[rows]]\nfiles="rows.csv"\nsubject="who"\n[labels]\nfiles="rows.csv"\nsubject="who"'
    text = [f'name="{name}"\nlicence="open"\nfolder="{name}"', head]
    text += [f'[tasks.y]\ncolumn="y"\n{task}']
    for modality, (kind, names) in modalities.items():
        text += [f"[modalities.{modality}]\n{kind}\nfeatures={json.dumps([*names])}"]
    (OUT / "raw" / f"{name}.toml").write_text("\n".join(text))


def bundled(name, cuts, task, load):
    """One of scikit-learn's sets, of which modalities go missing."""
    found, draw = load(), np.random.default_rng(0)
    frame = pd.DataFrame(found.data, columns=[f"x{i}" for i in range(found.data.shape[1])])
    parts = {
        f"part{k}": [*frame][a:b] for k, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False))
    }
    gone = draw.random((len(frame), 3)) < 0.35
    gone[np.arange(len(frame)), draw.integers(0, 3, len(frame))] = False
    for k, names in enumerate(parts.values()):
        frame.loc[gone[:, k], names] = np.nan
    frame = frame.assign(who=[f"P{i:04d}" for i in range(len(frame))], y=found.target)
    frame["y"] = frame.y if "class" not in task else "c" + frame.y.astype(str)
    save(name, task, {k: ('kind="table"', v) for k, v in parts.items()}, rows=frame)


def data():
    """Writes the files of every set but eICU's."""
    bundled("cancer", (0, 10, 20, 30), 'kind="binary"', datasets.load_breast_cancer)
    classes = 'kind="multiclass"\nclasses=["c0","c1","c2"]'
    bundled("wine", (0, 4, 9, 13), classes, datasets.load_wine)
    bundled("diabetes", (0, 3, 6, 10), 'kind="regression"', datasets.load_diabetes)
    (OUT / "raw/support2").mkdir(exist_ok=True)
    rows = pd.read_csv(SOURCE / "support2/support2.csv").sample(1500, random_state=0).sort_index()
    rows.to_csv(OUT / "raw/support2/support2.csv", index=False)


def run(name, arm):
    """The scores of one arm on one set: 2 AUROC - 1, or R2."""
    task, _, metric = SETS[name].partition("/")
    work = OUT / f"{name}-{arm}"
    file = {"support2": "support2", "eicu": "eicu_demo"}.get(name, f"{OUT}/raw/{name}.toml")
    flags = [f"--workdir={work}", "--set", f"train.select={SETS[name]}"]
    flags += ["--set", f"data.raw_dir={SOURCE if name == 'eicu' else OUT / 'raw'}"]
    flags += ["--set", f"data.name={'meds' if name == 'eicu' else 'tables'}"]
    flags += ["--set", f"data.options.file={file}"]
    flags += [w for field in ARMS[arm].split() for w in ("--set", field)]
    if not (work / "results/crossval.json").exists():
        subprocess.run([sys.executable, "-m", "m4.main", *FLAGS.split(), *flags], check=True)
    scores = json.loads((work / "results/crossval.json").read_text())["scores"]
    (value,) = [
        s["metrics"][metric]["value"] for s in scores if (s["task"], s["subset"]) == (task, "full")
    ]
    return value if metric == "r2" else 2 * value - 1


if __name__ == "__main__":
    data()
    found = {arm: np.array([run(name, arm) for name in SETS]) for arm in ARMS}
    for arm, scores in sorted(found.items(), key=lambda item: -item[1].mean()):
        apart = scores - found["shipped"]
        half = stats.sem(apart) * stats.t.ppf(0.975, len(SETS) - 1)
        shown = " | ".join(f"{s:.3f}" for s in (*scores, scores.mean()))
        print(f"| {arm} | {shown} | {apart.mean():+.3f} ± {half:.3f} |")
