"""`train.select` on labels that leave its metric undefined is refused before a step is trained."""

import itertools

import ml_collections
import numpy as np
import pytest

from m4.errors import ConfigError
from m4.main import main
from m4.run import selection
from m4.specs import METRICS, DataSpec, ModalitySpec, TaskSpec
from tests import toy

STUDY = """
folder = "study"
[window]
hours = 24
[[events]]
files = "events.csv"
subject = "patient"
time = "at"
code = "item"
value = "result"
[labels]
files = "outcomes.csv"
subject = "patient"
time = "at"
[tasks.death]
column = "death"
kind = "binary"
[tasks.other]
column = "other"
kind = "binary"
[modalities.labs]
kind = "series"
features = ["lactate"]
every = 6
"""
KINDS = {
    "binary": (1, 1),
    "multilabel": (2, 2),
    "multiclass": (3, 1),
    "regression": (1, 1),
    "survival": (3, 2),
}


def both(y):
    return len(np.unique(y)) > 1


def pairs(y):
    """Whether somebody outlives an event, by looking at every pair."""
    return any(
        a[1] > 0 and (b[0] > a[0] or (b[0] == a[0] and b[1] == 0))
        for a, b in itertools.permutations(y, 2)
    )


def defined(kind, metric, y, mask):
    """By the definitions alone: what a metric needs of its labels."""
    known = y[mask.any(1)]
    if not len(known):
        return False
    if kind == "survival":
        return pairs(known)
    if metric in ("r2", "spearman") or (kind == "multiclass" and metric == "auroc_macro"):
        return both(known)
    columns = [y[mask[:, c], c] for c in range(y.shape[1])]
    name, _, how = metric.partition("_")
    need = {"auroc": both, "auprc": np.any, "f1": np.any, "min": np.any}.get(name)
    if kind == "multiclass" or need is None:
        return True
    return any(map(need, columns)) if how == "macro" else bool(need(y[mask]))


class Split:
    """A split of labels alone; the second modality is absent in half of the rows."""

    def __init__(self, task, y, mask):
        modalities = (ModalitySpec("a", "table", (1,)), ModalitySpec("b", "table", (1,)))
        self.spec, self._rows = DataSpec(modalities, (task,)), {"y/t": y, "y/t/mask": mask}
        self._rows |= {"a/present": np.ones(len(y)), "b/present": np.arange(len(y)) % 2}

    def __len__(self):
        return len(self._rows["y/t"])

    def columns(self, keys):
        return {key: self._rows[key] for key in keys}


def config(select, choose="best"):
    return ml_collections.ConfigDict({"train": {"select": select, "choose": choose}})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("needs", [(), ("b",)])
def test_refused_where_the_labels_do_not_define_it(kind, needs):
    rng = np.random.default_rng(len(kind) + len(needs))
    dim, columns = KINDS[kind]
    task, met = TaskSpec("t", kind, dim=dim, needs=needs), set()
    for _ in range(60):
        rows = rng.integers(1, 6)
        y = (
            rng.integers(
                0,
                rng.integers(1, 4 if kind in ("multiclass", "regression") else 3),
                size=(rows, columns),
            )
            .clip(max=2)
            .astype(float)
        )
        y = y.clip(max=1) if kind in ("binary", "multilabel") else y
        if kind == "survival":
            y = np.stack([y[:, 0], y[:, 1] > 0], -1).astype(float)
        mask = rng.random((rows, 1 if kind == "survival" else columns)) < rng.choice([0.3, 1])
        mask = np.broadcast_to(mask, y.shape).copy()
        split = Split(task, y[:, 0] if kind == "multiclass" else y, mask.astype(np.float32))
        counted = mask & (np.arange(rows)[:, None] % 2 > 0) if needs else mask
        for metric in METRICS[kind]:
            right = defined(kind, metric, y, counted)
            met.add(right)
            if right:
                selection.require_defined(config(f"t/{metric}"), split)
            else:
                with pytest.raises(ConfigError, match=f"train.select='t/{metric}'.*validation"):
                    selection.require_defined(config(f"t/{metric}"), split)
                selection.require_defined(config(f"t/{metric}", "last"), split)
    assert met == {True, False}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study in which nobody of the validation split has the outcome `other`."""
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "study"
    folder.mkdir()
    (tmp_path / "d.toml").write_text(STUDY)
    (tmp_path / "c.py").write_text(toy.config("tables", tmp_path / "d.toml", "other/auroc"))
    events, outcomes = ["patient,at,item,result"], ["patient,at,death,other"]
    for n in range(80):
        events.append(f"{n},2020-01-01 00:00:00,lactate,{n % 7}.5")
        outcomes.append(f"{n},2020-01-01 12:00:00,{n % 2},0")
    (folder / "events.csv").write_text("\n".join(events) + "\n")
    (folder / "outcomes.csv").write_text("\n".join(outcomes) + "\n")
    return tmp_path


@pytest.mark.parametrize("mode", ["train", "check"])
def test_refused_through_the_command(study, capsys, mode):
    command = [f"--config={study / 'c.py'}", f"--workdir={study / 'w'}", f"--mode={mode}"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "train.select='other/auroc': cannot be computed on the validation split" in said.err
    assert "every label is 0" in said.err and "brier" in said.err
    assert "compiled" not in said.out and not (study / "w/run.json").exists()


def test_where_no_step_is_chosen_labels_of_one_class_are_said(study, capsys):
    command = [f"--config={study / 'c.py'}", f"--workdir={study / 'w'}", "--mode=check"]
    assert main([*command, "--config.train.choose=last"]) == 0
    said = capsys.readouterr().out
    before = said.partition("compiled")[0]
    assert "m4: warning: train.select=other/auroc: cannot be computed on the validation" in before
    assert "m4: warning: other: its label never varies among the training rows" in before
    assert "death" not in "".join(line for line in said.splitlines() if "warning" in line)


@pytest.mark.parametrize(
    ("kind", "y", "said"),
    [
        ("binary", [[0], [0], [1]], "its label"),  # the 1 is unknown
        ("binary", [[0], [1], [0]], None),
        ("multilabel", [[0, 1], [1, 1], [0, 1]], "1 of 2 labels"),
        ("multiclass", [2, 2, 0], "its label"),
        ("regression", [[1.5], [1.5], [7]], "its label"),
        ("survival", [[3, 0], [9, 0], [1, 1]], "its label"),  # nobody has the event
        ("survival", [[3, 1], [3, 0], [1, 1]], None),
    ],
)
def test_labels_of_which_nothing_can_be_learned(capsys, kind, y, said):
    """The last row has no label, whatever stands there."""
    y = np.array(y, float)
    mask = np.ones((3, KINDS[kind][0] if kind == "multilabel" else 1))
    mask[2] = 0
    task = TaskSpec("t", kind, dim=KINDS[kind][0])
    train = Split(task, y, mask if kind == "multilabel" else mask[:, 0])
    selection.tell(config("t/x"), train, None)
    told = capsys.readouterr().out
    assert (f"m4: warning: t: {said} never varies" in told) if said else not told
