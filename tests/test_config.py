"""Every mistake is one line: field, value, what is allowed, nearest name; all at once."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m4 import config as configs
from m4.config import code, program, rules
from m4.errors import ConfigError
from m4.eval import metrics
from m4.modes import tim
from m4.run import preflight
from m4.run.method import make_method, require_fit
from m4.specs import METRICS, TaskSpec
from tests import toy_data, yardstick

TOY = """
import ml_collections
VARIANTS = ('small', 'shared')
def get_config(variant=''):
    c = ml_collections.ConfigDict(dict(
        seed=1,
        data=dict(name='tests.toy_data', options=dict(rows=64)),
        method=dict(name='tests.toy:Toy', width=4),
        optim=dict(lr=0.01),
        train=dict(steps=100, batch_size=16, select='death/auroc'),
        eval=dict(batch_size=16),
    ))
    if variant == 'shared':
        size = ml_collections.FieldReference(8)
        c.train.batch_size = size
        c.eval.batch_size = size
    return c
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return str(path)


def load(path, *args):
    return configs.load(configs.parse([f"--config={path}", *args]))


def problems(path, *args):
    with pytest.raises(ConfigError) as error:
        load(path, *args)
    assert all("\n" not in line for line in error.value.lines())
    return error.value.lines()


def test_defaults_overrides_and_types(toy):
    config = load(toy, "--config.optim.lr=1e-4", "--config.train.steps=1e3", "--config.seed", "5")
    assert (config.optim.lr, config.train.steps, config.seed) == (1e-4, 1000, 5)
    assert isinstance(config.train.steps, int)
    assert config.optim.name == "adamw" and config.mesh.expert == 1
    assert (config.method.width, config.method.top_k) == (4, 2)  # file, then the class's default
    assert config.is_locked
    config = load(toy, "--config.method.flavour=fancy", "--config.eval.subsets=false")
    assert config.method.flavour == "fancy" and config.eval.subsets is False


def test_references_between_fields_hold(toy):
    config = load(f"{toy}:shared", "--config.train.batch_size=32")
    assert config.eval.batch_size == 32


# Each line: argument, field named in the message, what else the message must say.
MISTAKES = [
    ("--config.train.step=5", "train.step", "did you mean steps"),
    ("--config.train.stepss=5", "train.stepss", "did you mean steps"),
    ("--config.optim.learning_rate=0.1", "optim.learning_rate", "did you mean optim.lr"),
    ("--config.optim.zzz=1", "optim.zzz", "optim has: b1"),
    ("--config.lr=0.1", "lr", "did you mean optim.lr"),
    ("--config.trian.steps=5", "trian.steps", "did you mean train"),
    ("--config.method.num_expert=8", "method.num_expert", "did you mean num_experts"),
    ("--config.data.options.row=3", "data.options.row", "did you mean rows"),
    ("--config.optim.lr=abc", "optim.lr=abc", "finite number above 0"),
    ("--config.optim.lr=nan", "optim.lr=nan", "finite number above 0"),
    ("--config.optim.lr=inf", "optim.lr=inf", "finite number above 0"),
    ("--config.optim.lr=0", "optim.lr=0.0", "above 0"),
    ("--config.optim.lr=-1", "optim.lr=-1.0", "above 0"),
    ("--config.method.num_experts=1.5", "method.num_experts=1.5", "an integer at least 1"),
    ("--config.method.num_experts=-3", "method.num_experts=-3", "an integer at least 1"),
    ("--config.method.num_experts=1e400", "method.num_experts=1e400", "an integer"),
    ("--config.method.dropout=1.0", "method.dropout=1.0", "below 1"),
    ("--config.train.steps=0", "train.steps=0", "at least 1"),
    ("--config.train.steps=1_0x", "train.steps=1_0x", "an integer"),
    ("--config.eval.subsets=maybe", "eval.subsets=maybe", "true or false"),
    ("--config.optim.name=adamv", "optim.name='adamv'", "or adamw?"),
    ("--config.optim.schedule=cosin", "optim.schedule='cosin'", "did you mean cosine"),
    ("--config.data.name=tests.toy_dota", "data.name='tests.toy_dota'", "package.module"),
    ("--config.method.name=tests.toy:Tpy", "method.name='tests.toy:Tpy'", "must be one of"),
    ("--config.method.name=nope.mod:Toy", "method.name='nope.mod:Toy'", "must be one of"),
    ("--config.train.select=death/auc", "train.select='death/auc'", "did you mean auroc"),
    ("--config.method.top_k=9", "method.top_k=9", "method.num_experts=4"),
    ("--config.mesh.data=3", "train.batch_size=16", "multiple of mesh.data*fsdp*expert=3"),
    ("--config.mesh.expert=8", "method.num_experts=4", "multiple of mesh.expert=8"),
    ("--config.optim.warmup_steps=101", "optim.warmup_steps=101", "train.steps=100"),
    ("--config.train=3", "train", "no such field, but a section; it has: accumulate, augment"),
    ("--config.optim.lr.x=3", "optim.lr.x", "optim.lr is a value"),
    ("--config.method.name=tests.toy:Tpy", "method.name='tests.toy:Tpy'", "did you mean Toy?"),
    ("--config.method.name=nope.mod:Toy", "method.name='nope.mod:Toy'", "No module named 'nope'"),
    ("--config.method.moe.gate=uniform", "method.moe", "no such section; method has: "),
]


@pytest.mark.parametrize(("argument", "field", "says"), MISTAKES, ids=lambda x: x)
def test_mistakes(toy, argument, field, says):
    lines = problems(toy, argument)
    assert any(line.startswith(f"m4: config error: {field}:") and says in line for line in lines), (
        lines
    )


def test_all_mistakes_at_once(toy):
    lines = problems(
        toy, "--config.optim.lr=-1", "--config.train.step=5", "--config.method.num_experts=x"
    )
    assert len(lines) == 3


def test_mistakes_in_the_file_itself(tmp_path, toy):
    text = TOY.replace("lr=0.01", "lr='fast', momentum=0.9").replace("seed=1", "sead=1")
    bad = tmp_path / "bad.py"
    bad.write_text(text.replace("steps=100, ", ""))
    lines = "\n".join(problems(bad))
    for part in ("optim.lr='fast'", "optim.momentum", "sead", "did you mean seed", "train.steps"):
        assert part in lines


def test_file_errors(tmp_path, toy):
    def line(path):
        (text,) = problems(path)
        return text

    assert "no such configuration file" in line("nope.py")
    assert "did you mean" in line("configs/fusemoe_mimik.py")
    assert "local file" in line("https://example.org/x.py")
    assert "'small'" not in line(f"{toy}:smal") and "small" in line(f"{toy}:smal")
    for name, text, says in [
        ("a.py", "x = 1", "no function get_config"),
        ("b.py", "def get_config(:", "line 1"),
        ("c.py", "x = 1\nraise RuntimeError('boom')", "line 2: RuntimeError: boom"),
        ("d.py", "def get_config(v=''): return 3", "not a ConfigDict"),
        ("e.py", "def get_config(): return {}", "no such variant"),
    ]:
        (tmp_path / name).write_text(text)
        assert says in line(f"{tmp_path / name}{':x' if name == 'e.py' else ''}"), name


def test_flag_errors():
    def lines(*args):
        with pytest.raises(ConfigError) as error:
            configs.parse(args)
        return error.value.lines()

    assert "did you mean --config.lr?" in lines("--confg.lr=1")[0]
    assert "did you mean --workdir?" in lines("--wrkdir=x")[0]
    assert "did you mean train?" in lines("--mode=trian")[0]
    assert "unknown flag" in lines("stray")[0]
    assert "needs a value" in lines("--workdir")[0]
    assert len(lines("--a=1", "--b=2", "--mode=x")) == 3
    with pytest.raises(ConfigError, match="shipped: .*fusemoe_mimic.py"):
        configs.load(configs.parse([]))


def test_default_workdir_names_config_and_variant():
    assert configs.parse(["--config=configs/x.py:tiny"]).workdir == Path("runs/x-tiny")
    assert configs.parse(["--config=configs/x.py"]).workdir == Path("runs/x")


def test_json_round_trip_and_diff(toy, tmp_path):
    config = load(toy, "--config.data.options={'rows': 64, 'sizes': (1, 2)}")
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(config))
    again = configs.read_json(path)
    assert again == config.to_dict() and again["data"]["options"]["sizes"] == (1, 2)
    assert configs.diff(again, config.to_dict()) == []
    new = json.loads(json.dumps(again))
    new["optim"]["lr"], new["eval"]["bootstrap"], new["train"]["log_every"] = 0.5, 7, 1
    assert configs.diff(again, new) == [
        "data.options.sizes: (1, 2) -> [1, 2]",
        "optim.lr: 0.01 -> 0.5",
        "train.buckets: () -> []",
        "train.writers: ('tensorboard',) -> ['tensorboard']",
    ]
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        configs.read_json(path)


def test_a_stored_configuration_gets_the_fields_that_came_after_it(toy):
    now = load(toy, "--config.data.options={'rows': 64, 'sizes': (1, 2)}").to_dict()
    note = json.loads(json.dumps(now))  # as in a checkpoint: tuples are lists
    del note["train"]["buckets"], note["text"]
    assert configs.completed(note, "a checkpoint") == now
    note["optim"]["lr"] = 0.5
    assert configs.diff(configs.completed(note, "a checkpoint"), now) == ["optim.lr: 0.5 -> 0.01"]
    assert configs.completed({"odd": [1, [2]]}, "another version") == {"odd": (1, (2,))}


def test_without_config_the_stored_one_counts(toy, tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(load(toy, "--config.seed=9")))
    config = configs.load(configs.parse([f"--workdir={tmp_path}", "--config.optim.lr=0.5"]))
    assert (config.seed, config.optim.lr) == (9, 0.5)


CLASSES = """
import dataclasses
from typing import Literal
from collections.abc import Mapping
import flax.linen as nn
from flax.core import FrozenDict
from m4.methods.fusemoe.model import FuseMoE
from m4.specs import DataSpec

class Mine(FuseMoE):
    extra: int = 3
    fidelity: str = 'mine'

@dataclasses.dataclass(frozen=True)
class Part:
    x: int = 1
    y: Literal['a', 'b'] = 'a'

class Plain(nn.Module):
    data: DataSpec
    e: str
    b: float | None = None
    c: Literal['x', 'y'] = 'x'
    d: Mapping[str, float] = FrozenDict({'k': 0.1})
    f: tuple = (1, 2)
    g: object = nn.relu
    part: Part = Part(x=5)
    def loss(self, out, batch, step): ...

def no_method(): ...
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "outside_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "outside_classes"
    sys.modules.pop("outside_classes", None)


def test_fields_of_a_class(outside):
    fields = dict(code.fields(code.method_class(f"{outside}:Plain")))
    assert list(fields) == ["e", "b", "c", "d", "f", "g", "part.x", "part.y"]
    assert fields["e"] == code.Field(str, dataclasses.MISSING, (), False)
    assert fields["b"] == code.Field(float, None, (), True)
    assert fields["c"].choices == ("x", "y")
    assert fields["d"] == code.Field(dict, {"k": 0.1}, (), False)
    assert fields["g"].default is ...  # no plain value
    assert fields["part.x"] == code.Field(int, 5, (), False)


def test_a_subclass_outside_has_inherited_and_own_fields(outside, toy):
    """`class Mine(FuseMoE): extra: int = 3` in a file of one's own."""
    name = f"--config.method.name={outside}:Mine"
    config = load(toy, name, "--config.method.extra=7", "--config.method.moe.gate=gaussian")
    spec = toy_data.spec()
    made = make_method(config.method.to_dict(), spec)
    assert type(made).__name__ == "Mine" and (made.extra, made.width) == (7, 4)
    assert made.moe.gate == "gaussian" and made.moe.share == "permod"  # FuseMoE's own default
    config = load(toy, name, "--config.method.fidelity=yours")  # a field like any other
    assert make_method(config.method.to_dict(), spec).fidelity == "yours"
    (line,) = problems(toy, name, "--config.method.extr=7")
    assert "method.extr: no such field; did you mean extra?" in line
    (line,) = problems(toy, f"--config.method.name={outside}:no_method")
    assert "must be one of" in line


# What a file or the command line says by an old or an everyday name -> where it is now.
OLD = {
    "num_experts": "method.moe.num_experts",
    "top_k": "method.moe.top_k",
    "gate": "method.moe.gate",
    "hidden": "method.moe.hidden",
    "routing": "method.moe.router",
    "router": "method.moe.router or method.moe.share",
    "sharing": "method.moe.share",
    "dispatch": "method.moe.engine",
    "capacity_factor": "method.moe.capacity",
    "num_replicas": "method.moe.replicas",
    "routing_options": "method.moe.router_options",
    "gate_options": "method.moe.gate_options",
    "dtype": "method.moe.dtype",
}


@pytest.mark.parametrize("name", OLD)
def test_old_names_are_hints(name):
    (line,) = problems("configs/fusemoe_mimic.py:tiny", f"--config.method.{name}=1")
    assert f"method.{name}: no such field; did you mean {OLD[name]}?" in line


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("router=joint", "share=joint"),
        ("router=permod", "share=permod"),
        ("gate=soft", "router=soft"),
    ],
)
def test_a_value_of_another_field_is_a_hint(value, meant):
    (line,) = problems("configs/fusemoe_mimic.py:tiny", f"--config.method.moe.{value}")
    assert line.endswith(f"; did you mean method.moe.{meant}?")


def test_a_layer_is_checked_though_another_section_is_wrong():
    wrong = ["--config.optim.lrr=1", "--config.method.moe.replicas=99"]
    lines = problems("configs/fusemoe_mimic.py:tiny", *wrong)
    assert len(lines) == 2 and "method.moe.replicas=99 must be at most" in lines[1]


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ("router=soft share=joint engine=dense capacity=1.5", "engine='dense' capacity=1.5"),
        ("router=expert_choice share=joint replicas=2", "replicas=2"),
        ("router=product_keys gate=linear engine=dropless", "engine='dropless'"),
        ("engine=dense capacity=2.0", "capacity=2.0"),
        ("router=top_k num_groups=2", "num_groups=2"),
    ],
)
def test_an_option_without_effect_is_refused(options, idle):
    given = [f"--config.method.moe.{option}" for option in options.split()]
    lines = "\n".join(problems("configs/fusemoe_mimic.py:tiny", *given))
    for option in idle.split():
        assert f"method.moe.{option}: has no effect, " in lines
    assert lines.count("has no effect") == len(idle.split())


def test_gate_router_and_select_are_told_at_once():
    wrong = ["gate_options={'power': 2}", "router_options={'normalize': 1}"]
    wrong = [f"--config.method.moe.{option}" for option in wrong]
    wrong += ["--config.train.select=ihm/auroc", "--config.method.aux_weights.importance=-1"]
    lines = "\n".join(problems("configs/fusemoe_mimic.py:tiny", *wrong))
    assert "takes no option power" in lines and "takes no option normalize" in lines
    assert "train.select='ihm/auroc': tasks are" in lines
    assert "aux_weights.importance=-1: must be a finite number at least 0" in lines


def test_a_misspelt_loss_or_weight_is_refused():
    def line(*args):
        return problems("configs/fusemoe_mimic.py:tiny", *args)[0]

    assert "no such loss" in line("--config.method.aux_weights.laod=1")
    assert "did you mean load?" in line("--config.method.aux_weights.laod=1")
    assert "must be a finite number" in line("--config.method.aux_weights.load=much")
    load("configs/fusemoe_mimic.py:tiny", "--config.method.aux_weights.switch=0.1")


def test_fields_of_another_fidelity(tmp_path, capsys):
    path = tmp_path / "released.py"
    text = TOY.replace("name='tests.toy:Toy', width=4", "name='flexmoe', bank='full', width=4")
    path.write_text(text)
    assert load(path).method.bank == "full" and not capsys.readouterr().out
    config = load(path, "--config.method.fidelity=released")
    assert "bank" not in config.method and config.method.num_patches == 16
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "left out, fields of fidelity m4 that released hasn't: method.bank"
    (line,) = problems(path, "--config.method.num_patches=4")
    assert "method.num_patches: no such field, but fidelity paper and released has it" in line
    (line,) = problems(path, "--config.method.fidelity=releasd")
    assert "method.fidelity='releasd': must be one of m4, paper, released" in line
    (line,) = problems(toy_at(tmp_path), "--config.method.fidelity=paper")
    assert "method.fidelity: no such field" in line  # an outside class is itself


def test_a_method_takes_over_a_configuration_for_another(capsys):
    """Where none is shipped for it on these data; else that one is named (test_mistakes)."""
    name = "--config.method.name=concat"
    config = load("configs/flexcare_physionet2012.py", name, "--config.method.hidden=32")
    own = {"name": "concat", "fidelity": "m4", "width": 64, "hidden": 32, "depth": 1}
    assert config.method.to_dict() == own | {"dropout": 0.4}  # of FlexCare's: depth and dropout
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("left out, fields for flexcare that concat hasn't: method.max_size, ")
    assert line.endswith("method.aux_weights.load")
    assert load("configs/own.py", "--config.method.name=flexmoe", *OWN).method.name == "flexmoe"
    (line,) = problems("configs/fusemoe_mimic.py:tiny", name, "--config.method.moe.top_k=2")
    assert "method.moe: no such section; method has: " in line
    line = problems("configs/m4oe_physionet2012.py", "--config.method.name=flexmoe")[0]
    assert "take --config=configs/flexmoe_physionet2012.py" in line


OWN = ("--config.train.select=death/auroc", "--config.data.options.file=docs/example/ward.toml")


def toy_at(folder):
    (folder / "toy.py").write_text(TOY)
    return folder / "toy.py"


def test_a_file_imports_those_beside_it_and_they_are_forgotten(tmp_path, monkeypatch):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared.py").write_text(f"LR = {lr}")
        text = TOY.replace("import ml_collections", "import ml_collections, shared")
        (tmp_path / name / "c.py").write_text(text.replace("lr=0.01", "lr=shared.LR"))
    assert load(tmp_path / "a/c.py").optim.lr == 0.1
    monkeypatch.chdir(tmp_path / "b")
    assert load("c.py").optim.lr == 0.2
    assert "shared" not in sys.modules and str(tmp_path / "a") not in sys.path


def test_every_default_is_allowed_and_every_choice_comes_from_the_code():
    for path, rule in rules.FIELDS.items():
        assert rule.allowed(), path
        if rule.names and rule.default is not rules.REQUIRED:
            assert rule.default in rule.names(), path
    for name in code.method_names():
        for fidelity in code.method_modules(name):
            for path, rule in rules.method_rules(code.method_class(name, fidelity)).items():
                known = rule.default is not ... and rule.default is not rules.REQUIRED
                fresh = dataclasses.replace(rule, default=...)
                assert not known or fresh.problem(rule.default) is None, (name, fidelity, path)


def test_metrics_are_those_that_are_computed():
    rng, mask = np.random.default_rng(0), np.ones((40, 1), bool)
    label, p = rng.integers(0, 2, (40, 1)).astype(float), rng.uniform(0.01, 0.99, (40, 1))
    both = np.concatenate([1 - p, p], 1)
    found = {
        "binary": metrics.score(TaskSpec("t", "binary"), label, mask, p),
        "multilabel": metrics.score(
            TaskSpec("t", "multilabel", 2), np.c_[label, 1 - label], np.c_[mask, mask], both
        ),
        "multiclass": metrics.score(TaskSpec("t", "multiclass", 2), label, mask, both),
        "regression": metrics.score(TaskSpec("t", "regression"), label, mask, p),
    }
    for kind, values in found.items():
        assert set(values) == set(METRICS[kind]), kind


SHIPPED = [
    p
    for p in sorted(Path(__file__).parents[1].glob("configs/*.py"))
    if p.stem not in ("common", "own") and p.stem[:4] != "lab_"
]
SHIPPED = [f"{p}{v and ':' + v}" for p in SHIPPED for v in ("", *program.variants(str(p)))]


@pytest.mark.parametrize("target", SHIPPED, ids=lambda t: Path(t).name)
def test_shipped_configurations_are_valid(target):
    config = load(target)
    assert config.train.steps > 0


@pytest.mark.parametrize("variant", ["", ":meds"])
def test_the_configuration_of_own_data_asks_for_what_only_its_user_knows(variant):
    own = str(Path(__file__).parents[1] / f"configs/own.py{variant}")
    assert any("train.select='': must be '<task>/<metric>'" in line for line in problems(own))
    given = ("--config.train.select=died/auroc", "--config.data.options.file=ward.toml")
    config = load(own, *given)
    assert config.train.steps > 0 and config.data.name == (variant[1:] or "tables")


HEAVY = {"orbax", "sklearn", "matplotlib", "tensorflow_datasets", "grain", "scipy"}


@pytest.mark.parametrize("wrong", ["optim.lr=-1", "method.moe.router='expertchoice'"])
def test_refused_at_once(wrong):
    """In some 1.1 s, where JAX takes 0.5, before it looks for devices or anything heavy comes."""
    given = "--config." + wrong.replace("'", "")
    code = (
        "import sys, time; from m4 import main; code = main.main(sys.argv[1:]);"
        "assert code == 2, code; names = {m.split('.')[0] for m in sys.modules};"
        "print(time.process_time(), *names);"
        "from jax._src import xla_bridge; assert not xla_bridge._backends"
    )

    def seconds():
        done = subprocess.run(
            [sys.executable, "-c", code, "--config=configs/flexmoe_mimic.py", given],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        assert done.stderr.startswith(f"m4: config error: {wrong}")
        spent, *modules = done.stdout.split()
        assert not HEAVY & {*modules}
        return float(spent)

    assert yardstick.in_imports(seconds) < 3


def test_shares_of_task_streams_name_tasks_of_the_data_set():
    train = {"select": "death/auroc", "task_weights": {}, "stream_ratio": {"loss": 1.0, "los": -1}}
    found = rules.data_problems({"train": train}, toy_data.spec())
    assert found[0] == "train.stream_ratio.loss: tasks are death, los; did you mean los?"
    assert found[1].startswith("train.stream_ratio.los=-1: must be") and len(found) == 2


def test_buckets_and_an_order_by_rows_are_refused_together():
    order = ["--config.train.order=complete_first", "--config.train.order_epochs=2"]
    (line,) = problems("configs/fusemoe_mimic.py:tiny", *order, "--config.train.buckets=(4,8)")
    assert line.endswith("train.order='complete_first': sorts rows, and train.buckets does too")


def test_what_a_layer_refuses_of_a_schema_names_its_field():
    changed = ["--config.method.moe.share=disjoint", "--config.method.moe.num_experts=29"]
    config = load("configs/fusemoe_mimic.py:synthetic", *changed)
    with pytest.raises(ConfigError, match="^method.moe.num_experts=29 cannot be split"):
        require_fit(config, preflight.schema(config))


def test_sizes_of_parts_of_a_method_are_positive():
    config = "configs/m4oe_views.py:tiny"
    for name in ("modality_experts", "fusion_experts", "vit_heads", "moe.num_experts"):
        (line,) = problems(config, f"--config.method.{name}=0")
        assert f"method.{name}=0: must be an integer at least 1" in line
    assert load(config, "--config.method.fusion_depth=0").method.fusion_depth == 0


def test_a_loss_of_another_router_is_named_where_it_stands():
    (line,) = problems("configs/fusemoe_mimic.py:tiny", "--config.method.aux_weights.loss_free=1")
    assert line.endswith("method.aux_weights: loss_free needs bias_E, which was not given")


def test_task_weights_name_tasks_of_the_data_set():
    spec = toy_data.spec()

    def problems(**weights):
        train = {"select": "death/auroc", "task_weights": weights}
        return rules.data_problems({"train": train}, spec)

    assert problems(death=0.0, los=2) == []
    assert "tasks are death, los; did you mean los?" in problems(loss=1.0)[0]
    for wrong in (-1.0, float("nan"), "much"):
        (problem,) = problems(los=wrong)
        assert problem.startswith("train.task_weights.los=") and "number" in problem


def test_costs_name_modalities_of_the_data_set():
    train = {"select": "death/auroc", "task_weights": {}}

    def problems(**costs):
        return rules.data_problems({"train": train, "eval": {"costs": costs}}, toy_data.spec())

    name = toy_data.spec().modality_names[0]
    assert problems(**{name: 2.5}) == [] == problems()
    (unknown,) = problems(**{f"{name}x": 1.0})
    assert unknown.endswith(f"did you mean {name}?")
    for wrong in (0.0, -1.0, float("inf"), "much"):
        (problem,) = problems(**{name: wrong})
        assert problem.startswith(f"eval.costs.{name}=") and "number" in problem


def test_a_shipped_layer_takes_what_is_no_function_of_routers_and_names_a_size_once():
    config = str(Path(__file__).parents[1] / "configs/fusemoe_mimic.py:tiny")
    keys = ["--config.method.moe.router=product_keys", "--config.method.moe.share=joint"]
    found = load(config, *keys, "--config.method.aux_weights={}")
    assert found.method.moe.router == "product_keys"
    (line,) = problems(config, "--config.method.moe.router=product_key")
    assert line.endswith("did you mean product_keys?")
    (line,) = problems(config, "--config.method.moe.top_k=100")
    assert "method.moe.top_k=100: must be at most method.moe.num_experts=4" in line


@pytest.mark.parametrize(
    "field",
    ["train.watchdog", "method.width", "train.task_weights.death", "eval.costs.vitals", "seed"],
)
def test_whole_numbers_that_no_computer_takes_are_refused(toy, field):
    assert any(field.rpartition(".")[0] in p for p in problems(toy, f"--config.{field}={10**400}"))


@pytest.mark.parametrize(
    "changed",
    [
        {"train.from": "runs/x"},
        {"train.precision": "bfloat16"},
        {"train.accumulate": 2},
        {"train.ranking": 1.0},
        {"optim.halve": True},
        {"data.also_train": "all"},
        {"eval.missing": {"kind": "mcar", "rate": 0.5}},
        {"train.until": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["tim", "interplay"])
def test_what_training_many_times_does_not_follow_is_refused(toy, changed, mode):
    config = load(toy)
    tim.require_plain(config, mode)
    ((path, value),) = changed.items()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({path: value})
    with pytest.raises(ConfigError, match=f"{path}=.*--mode={mode} does not follow it"):
        tim.require_plain(config, mode)
