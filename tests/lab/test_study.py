"""What a study's configuration says, and what of it is refused, before anything runs."""

import errno

import pytest

from m4.errors import ConfigError
from m4.lab import sizes, study
from m4.lab.__main__ import main, parts

GATE = "method.moe.gate"
FILE = """
GATE = "method.moe.gate"
BASE = dict(
    data=dict(name="m4.lab.planted", options=dict(rows=400)),
    method=dict(name="m4.lab.mixture:Mixture", moe=dict(num_experts=16)),
    optim=dict(lr=0.01),
    train=dict(steps=4, batch_size=32, select="y0/rmse"),
    eval=dict(batch_size=100),
)
def get_config():
    found = dict(base=BASE, axes={{GATE: ("linear", "laplace", "cosine")}}, seeds=(0, 1))
    found |= dict(margin=dict(value=0.1, reason="less than noise of the answer"))
    return found | dict({changes})
"""


@pytest.fixture
def load(tmp_path):
    def make(changes=""):
        path = tmp_path / "own.py"
        path.write_text(FILE.format(changes=changes))
        return study.load(str(path))

    return make


WRONG = {
    "margin=None": "margin",
    "margin=dict(value=0.1)": "write down before a run",
    "margin=dict(value=0, reason='it is small enough')": "above 0",
    "margin=dict(value=float('nan'), reason='it is small enough')": "above 0",
    "margin=dict(value=0.1, reason='')": "write down before a run",
    "nulls=('contenthash',)": "content_hash",
    "seeds=(0,)": "two or more",
    "seeds=(0, 0)": "two or more",
    "compare='method.moe.router'": "is no axis",
    "reference='gaussian'": "is none of linear, laplace, cosine",
    "tune=dict(axes={'optim.lr': (1e-2,)}, seeds=(1,))": "other seeds",
    "match=dict(what='weights')": "must be dict(what=one of router",
    "match=dict(what='router', unmached=())": "must be dict(what=one of router",
    "margin=dict(value=True, reason='it is small enough')": "above 0",
    "margin=dict(value=float('inf'), reason='it is small enough')": "above 0",
    "margin=dict(value=0.1, reason='it is small enough', reasn='')": "must be dict(value",
    "base=3": "base=3: must be 'configs/x.py:variant'",
    "axes=3": "axes=3: must be {field",
    "axes={GATE: 'linear'}": "must be {field: (value, value, ...)}",
    "axes={GATE: ()}": "must be {field: (value, value, ...)}",
    "axes={GATE: ('linear', 'laplace'), 'seed': (0, 1)}": "seed: is no axis",
    "seeds=3": "seeds=3: must be two or more",
    "seeds=(0, 1.0)": "must be two or more",
    "seeds=(0, -1)": "must be two or more",
    "nulls='content_hash'": "nulls='content_hash': must be names of",
    "nulls=None": "nulls=None: must be names of",
    "set=('optim.lr', 1e-3)": "must be {field: value}",
    "by_arm={'cosine': 3}": "must be {arm: {field: value}}",
    "tune=dict(axes=('optim.lr',), seeds=(7,))": "must be dict(axes=",
    "tune=dict(axes={'optim.lr': (1e-2,)}, seeds=7)": "must be dict(axes=",
    "tune=dict(axes={'optim.lr': (1e-2,)}, seeds=(7,), trials=3)": "must be dict(axes=",
    "budget=30": "budget=30: must be a time",
    "metric=3": "metric=3: must be 'task/metric'",
    "metric='rmse'": "must be 'task/metric'",
    "together='threads'": "must be one of loop, map, vmap",
    "compare=None": "compare=None: must be a field",
    "marign=1": "no such field of a study",
    "metric='y0/auc'": "must be 'task/metric'",
    "tune=dict(axes={GATE: ('linear', 'laplace')}, seeds=(7,))": f"{GATE}: is an axis",
    "tune=dict(axes={'data.options.rows': (9,)}, seeds=(7,))": "would change what is measured",
    "tune=dict(axes={'seed': (9,)}, seeds=(7,))": "tune: seed: is set by tune.seeds",
    "tune=dict(axes={'optim.lr': (1e-2,)}, seeds=(7, 7))": "must be dict(axes=",
    "tune=dict(axes={'method.moe.rank': (2,)}, seeds=(7,)),"
    " match=dict(what='router')": "tune: method.moe.rank: is what `match` solves for",
    "tune=dict(axes={'optim.lr': ({'method.moe.hidden': 2},)}, seeds=(7,)),"
    " match=dict(what='total')": "tune: method.moe.hidden: is what `match` solves for",
    "tune=dict(axes={'method.moe.top_k': (2,)}, seeds=(7,)), nulls=('dense_mean',)": "dense_mean",
    "tune=dict(axes={'optim.lr': (2,)}, seeds=(7,)), by_arm={'cosine': {'optim.lr': 1}}": "by_arm",
    "set={'seed': 7}": "set: seed: is set by `seeds`",
    "by_arm={'laplace': {'seed': 7}}": "by_arm: laplace: seed: is set by `seeds`",
    "axes={GATE: ('linear', {GATE: 'laplace', 'seed': 3})}": "seed: is set by `seeds`",
    "axes={GATE: ({'called': 3, GATE: 'linear'}, 'laplace')}, reference=3": "must be a text",
    "axes={GATE: ('linear',), 'optim.lr': (float('nan'),)}": "must be {field",
    "margin=dict(value=10**400, reason='it is small enough')": "above 0",
    "budget='\u0661s'": "must be a time",
    "tune=dict(axes={'train.select': ('y0/mae', 'y0/rmse')}, seeds=(7,))": "what is measured",
    "tune=dict(axes={'method.moe.num_experts': (5, 6)}, seeds=(7,)),"
    " match=dict(what='router')": "would change the sizes that `match` solves for",
    "compare='data.options.world', reference=0, axes={'data.options.world': (0, 1)}": "in common",
}


@pytest.mark.parametrize("changes", WRONG)
def test_what_is_wrong_is_refused(load, changes):
    with pytest.raises(ConfigError) as caught:
        load(changes)
    assert WRONG[changes] in "\n".join(caught.value.args)


def test_a_wrong_arm_names_itself(load):
    asked = load("axes={GATE: ('linear', 'laplas'), 'method.moe.num_experts': (4, 8)}")
    with pytest.raises(ConfigError) as caught:
        study.arms(asked)
    assert "laplas (num_experts=4): method.moe.gate='laplas'" in caught.value.args[0]
    assert len(caught.value.args) == 2


TYPOS = {
    "by_arm={'cosin': {'method.moe.rank': 3}}": "by_arm: 'cosin' is no arm (did you mean cosine?)",
    "match=dict(what='router', unmatched=('sigmoid',))": "match.unmatched: 'sigmoid' is no arm",
    "tune=dict(axes={'optim.lrr': (1e-2,)}, seeds=(7,))": "linear: optim.lrr: no such field",
    "metric='y1/rmse'": "y1",
    "by_arm={'cosine': {'train.select': 'y0/mae'}}": "cosine would be judged by y0/mae, others by",
    "metric='y1/rmse', axes={GATE: ('linear',), 'data.options.tasks': (2, 1)}": "y1",
    "axes={GATE: ('linear', {GATE: 'linear', 'optim.lr': 1e-3})}": "two arms are called linear",
    "axes={GATE: ('linear',), 'optim.lr': (1e-2, {'optim.lr': 1e-2})}": "optim.lr: 0.01 twice",
    "axes={GATE: ('linear',), 'method.moe.num_experts': (4, 4.0)}": "are the same run",
    "axes={GATE: ('linear', {'called': 'a\\tb', GATE: 'laplace'})}": "cannot be shown",
    "by_arm={'laplace': {'method.moe': dict(hidden=8)}}": "method.moe: is set by by_arm",
    "by_arm={'laplace': {GATE: 'cosine'}}": f"{GATE}: is set by by_arm",
    "axes={GATE: ('linear', {GATE: 'laplace', 'optim.lr': 1e-3}), 'optim.lr': (1e-2,)}": "another",
    "set={'method': 3}": "method is a value, no section",
    "set={'method.moe.hidden.x': 3}": "hidden is a value",
    "axes={GATE: ('linear',), 'data.dir': ('a', 'b')}": "linear (dir=a) and linear (dir=b) are the",
    "axes={GATE: ('linear',), 'optim.lr': ({'called': 'a', 'optim.lr': 1e-2},"
    " {'called': 'b', 'optim.lr': 1e-2})}": "are the same run",
}


@pytest.mark.parametrize("changes", TYPOS)
def test_names_that_no_arm_has_are_refused(load, changes):
    with pytest.raises(ConfigError) as caught:
        study.arms(load(changes))
    assert TYPOS[changes] in "\n".join(caught.value.args)


def test_what_a_value_is_called_is_no_field_that_tuning_changes(load):
    named = "({'called': 'a', 'optim.lr': 1e-2}, {'called': 'b', 'optim.lr': 3e-2})"
    axes = "axes={GATE: ({'called': 'linear', GATE: 'linear'}, 'laplace')}"
    assert load(f"{axes}, tune=dict(axes={{'optim.lr': {named}}}, seeds=(7,))").tune


def test_how_often_a_run_logs_makes_no_other_rows(load):
    keys = [
        [arm.key for arm in study.arms(load(f"set={changes}"))[0]]
        for changes in ("{}", "{'train.log_every': 1, 'data.dir': 'x'}", "{'train.steps': 5}")
    ]
    assert keys[0] == keys[1] and not {*keys[0]} & {*keys[2]}


def test_arms_are_the_grid_and_the_nulls(load):
    asked = load(
        "nulls=('content_hash', 'dense_mean'), axes={GATE: ('linear', 'laplace'),"
        " 'method.moe.num_experts': ({'method.moe.num_experts': 8, 'train.steps': 2}, 128)}"
    )
    arms, left = study.arms(asked)
    assert len(arms) == 7 and "up to 64" in left["dense_mean (num_experts=128)"]
    assert len({arm.key for arm in arms}) == 7
    first = [arm for arm in arms if arm.family["method.moe.num_experts"] == 8]
    assert {arm.config["train"]["steps"] for arm in first} == {2}
    dense = next(arm for arm in first if arm.label == "dense_mean")
    assert dense.config["method"]["moe"]["top_k"] == 8 and dense.null
    assert [arm.label for arm in arms if arm.reference] == ["linear"] * 2


def test_a_margin_that_moves_makes_other_rows(load):
    a, b = study.arms(load())[0], study.arms(load("margin=dict(value=0.2, reason='it is a b')"))[0]
    again = study.arms(load())[0]
    assert [x.key for x in a] == [x.key for x in again]
    assert not {x.key for x in a} & {x.key for x in b}


def test_sizes_are_matched_within_two_percent(load):
    asked = load("match=dict(what='router'), by_arm={'cosine': {'method.moe.rank': 3}}")
    arms = sizes.matched(asked, study.arms(asked)[0])
    found = {arm.label: sizes.of_config(arm.config)["router"] for arm in arms}
    assert found == {"linear": 256, "laplace": 256, "cosine": 257}
    assert arms[2].config["method"]["moe"]["rank"] == 8


@pytest.mark.parametrize("what", ["total", "active", "flops"])
def test_the_experts_width_matches_what_lies_outside_the_router(load, what):
    gates = "axes={GATE: ('linear', 'noisy_linear', 'quadratic')}"
    asked = load(f"{gates}, match=dict(what={what!r}), set={{'method.moe.hidden': 128}}")
    before = study.arms(asked)[0]
    count = sizes.flops if what == "flops" else lambda config: sizes.of_config(config)[what]
    wanted, *others = [count(arm.config) for arm in before]
    assert max(others) > 1.02 * wanted  # else nothing is tried
    matched = sizes.matched(asked, before)
    assert all(abs(count(arm.config) - wanted) <= 0.02 * wanted for arm in matched)
    assert matched[0].config == before[0].config


@pytest.mark.parametrize(
    ("count", "most"),
    [
        (lambda n: 7 * n + 5, 5),  # in proportion, as nearly all are: no search
        (lambda n: n * n, 20),
        (lambda n: 40 * (n // 3) + n // 2, 20),
        (lambda n: 900, 5),
    ],
)
def test_the_size_found_is_the_least_of_the_nearest(count, most):
    for wanted in (1, 5, 12, 40, 899, 1000, 1700, 28_677, 90_000):
        tried = []
        near = min(range(1, sizes.MOST + 1), key=lambda n: (abs(count(n) - wanted), n))
        if abs(count(near) - wanted) > 0.02 * wanted:
            with pytest.raises(ValueError, match="nearest is"):
                sizes.solve(count, wanted)
            continue
        assert sizes.solve(lambda n: tried.append(n) or count(n), wanted) == near  # noqa: B023
        assert len(tried) <= most, tried


def test_what_cannot_be_matched_is_said(load):
    axes = "axes={GATE: ('linear', 'sigmoid')}, match=dict(what='router'"
    asked = load(f"{axes})")
    with pytest.raises(ConfigError, match="router of sigmoid.*272.*256.*unmatched"):
        sizes.matched(asked, study.arms(asked)[0])
    spared = load(f"{axes}, unmatched=('sigmoid',))")
    assert len(sizes.matched(spared, study.arms(spared)[0])) == 2


@pytest.mark.parametrize("text", ["3", "3/3", "a/b", "-1/4", "1/0"])
def test_a_part_that_is_none(text):
    with pytest.raises(ConfigError, match="must be I/N"):
        parts(text)


def test_the_command_says_what_is_wrong_in_a_line(capsys):
    assert main(["--out=x"]) == 2
    assert main(["thoery"]) == 2
    assert main(["--confg=x"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 3 and all(line.startswith("m4: config error: ") for line in printed)
    assert "configs/lab_gates.py" in printed[0] and "fusemoe" not in printed[0]
    assert main(["--help"]) == 0 and "--shard" in capsys.readouterr().out


def test_a_full_disk_is_called_so(monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(study, "load", full)
    assert main(["--config=x.py", "--plan"]) == 6  # known bad: 1, internal error
    assert "No space left" in capsys.readouterr().err
