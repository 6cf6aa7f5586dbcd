"""Every mistake is one line: field, value, what is allowed, nearest name; all at once."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from m4 import config as configs
from m4.config import files, flags, rules, schema
from m4.errors import ConfigError

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
    ("--config.train=3", "train", "no such"),
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


def test_fields_of_a_class_from_source():
    tree = ast.parse(
        "class Base(nn.Module):\n  a: int = 1\n"
        "class M(Base):\n  data: DataSpec\n  b: float | None = None\n"
        "  c: Literal['x', 'y'] = 'x'\n  d: Mapping[str, float] = FrozenDict({'k': 0.1})\n"
        "  e: str\n  f: int = compute()\n"
        "class Foreign(lib.Base):\n  a: int = 1\n"
    )
    fields = schema._class_fields(tree, "M")
    assert list(fields) == ["a", "b", "c", "d", "e", "f"]
    assert fields["b"] == schema.Field(float, None, (), True)
    assert fields["c"].choices == ("x", "y")
    assert fields["d"] == schema.Field(dict, {"k": 0.1}, (), False)
    assert fields["e"].default is schema.NO_DEFAULT and fields["f"].default is ...
    assert schema._class_fields(tree, "Foreign") is None


def test_gates_are_read_from_source():
    assert "laplace" in schema.gate_names()


SHIPPED = sorted(Path(__file__).parents[1].glob("configs/*.py"))
SHIPPED = [f"{p}{v and ':' + v}" for p in SHIPPED for v in ("", *files.variants(str(p)))]


@pytest.mark.parametrize("target", SHIPPED, ids=lambda t: Path(t).name)
def test_shipped_configurations_are_valid(target):
    config = load(target)
    assert config.train.steps > 0


def test_refused_before_jax_is_imported(toy):
    """In 1.5 s of process time at most: that is what keeps a typing error cheap."""
    code = (
        "import sys, time; from m4 import main; code = main.main(sys.argv[1:]);"
        "assert code == 2, code; assert 'jax' not in sys.modules; print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"--config={toy}", "--config.optim.lr=-1"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stderr.startswith("m4: config error: optim.lr=-1.0")
    assert float(done.stdout) < 1.5


def test_every_rule_can_say_what_it_allows():
    for path, rule in rules.FIELDS.items():
        assert rule.allowed(), path
    assert set(flags.MODES) == {"train", "crossval", "eval", "predict", "check", "report"}


def test_task_weights_name_tasks_of_the_data_set():
    tasks = ("death", "los")
    assert rules.weight_problem({"death": 0.0, "los": 2}, tasks) is None
    assert "tasks are death, los; did you mean los?" in rules.weight_problem({"loss": 1.0}, tasks)
    for wrong in (-1.0, float("nan"), "much"):
        problem = rules.weight_problem({"los": wrong}, tasks)
        assert problem.startswith("train.task_weights.los=") and "number" in problem
