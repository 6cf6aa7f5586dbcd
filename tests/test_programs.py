"""The programs of the shipped configurations: small, without loops of random numbers, reusable.

They are lowered for shapes alone; nothing is built, compiled or computed.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from m4 import config as configs
from m4 import sharding, task_losses
from m4.config import code, program
from m4.data.batch import empty
from m4.run import compiler, programs
from m4.run.setup import context, make_model

ROOT = Path(__file__).parents[1]
CONFIGS = [p for p in sorted(ROOT.glob("configs/*.py")) if "def get_config" in p.read_text()]
TINY = [f"{p.name}:{v}" for p in CONFIGS for v in program.variants(str(p)) if v.endswith("tiny")]
# One a method; the others run with `-m slow`, some minutes together.
QUICK = ("fusemoe_mimic", "flexmoe_physionet2012", "flexcare_eicu_meds", "m3h_mimic", "m4oe_views")
LINES = 11_000  # of StableHLO; a step of FuseMoE on MIMIC had 20,000
LINES_A_TASK = 70  # 85 to 250 where every task had a loss and a head of its own
METHODS = [target.split("_")[0] for target in QUICK]
FIRST = "fusemoe_mimic.py:tiny"


@dataclasses.dataclass(frozen=True)
class Texts:
    """StableHLO of what a run compiles."""

    init: str
    step: str
    predict: str
    losses: int  # traces of the loss, by methods that have the usual one


def lowered(target, *, fold=0, more_tasks=0, **overrides) -> Texts:
    """The programs of a configuration; of another `fold` the targets have other statistics."""
    found, losses, objective = [], [], task_losses.objective

    def counted(*args):
        losses.append(args)
        return objective(*args)

    def compile_(self, *args, **kwargs):
        found.append(self.as_text())
        return SimpleNamespace(memory_analysis=None)

    flags = [f"--config={ROOT}/configs/{target}"]
    flags += [f"--config.{path.replace('__', '.')}={value}" for path, value in overrides.items()]
    config = configs.load(configs.parse(flags))
    spec = code.data_module(config.data.name).spec(**config.data.options.to_dict())
    tasks = [dataclasses.replace(t, loc=0.5 + fold, scale=2.0 + fold) for t in spec.tasks]
    binary = next(t for t in tasks if t.kind == "binary")
    tasks += [dataclasses.replace(binary, name=f"more_{i}") for i in range(more_tasks)]
    spec = dataclasses.replace(spec, tasks=tuple(tasks))
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compile_)
        patch.setattr(task_losses, "objective", counted)
        model = make_model(config, Path("."), spec, empty(spec, config.train.batch_size), mesh)
        with context(mesh):
            programs.compile_step(model, config.train.batch_size)
            programs.compile_predict(model, config.eval.batch_size)
            with pytest.raises(TypeError):  # what stands for the compiled program is called at once
                model.init()
    step, predict, init = found
    return Texts(init, step, predict, len(losses))


@pytest.fixture(scope="module")
def first():
    return lowered(FIRST)


def marked(values, quick):
    return [pytest.param(x, marks=() if x in quick else pytest.mark.slow) for x in values]


@pytest.mark.parametrize("target", marked(TINY, [f"{name}.py:tiny" for name in QUICK]))
def test_programs_are_small_and_draw_without_loops(target, first):
    found = first if target == FIRST else lowered(target)
    assert found.step.count("\n") < LINES, found.step.count("\n")
    for text in (found.init, found.step, found.predict):
        assert "threefry" not in text
        assert "rng_bit_generator" not in text
    assert "stablehlo.while" not in found.init


@pytest.mark.parametrize("method", marked(METHODS, ["flexcare"]))
def test_a_task_more_is_few_lines(method):
    few, many = (lowered(f"{method}_mimic.py:tiny", more_tasks=number) for number in (8, 16))
    grown = [text.step.count("\n") for text in (few, many)]
    assert (grown[1] - grown[0]) / 8 < LINES_A_TASK, grown


def test_every_method_is_in_the_default_suite():
    own = {n for n in code.method_names() if (ROOT / "m4/methods" / n).is_dir()}  # no baselines
    assert {*METHODS} == own


def test_a_step_is_traced_once(first):
    assert first.losses == 1


def test_another_seed_fold_or_learning_rate_is_the_same_program(first):
    rates = {"optim__lr": 0.002, "optim__warmup_steps": 3, "optim__end_fraction": 0.1}
    assert lowered(FIRST, fold=1, seed=7, **rates) == first


def test_streams_of_an_evaluation_draw_apart_and_the_first_as_ever():
    noise = programs.noise(("gate", "dropout"))
    draws = {name: jax.random.bits(key, (4,)).tolist() for name, key in noise.items()}
    assert draws["gate"] != draws["dropout"]
    assert draws["gate"] == jax.random.bits(programs.noise(("gate",))["gate"], (4,)).tolist()


@pytest.mark.parametrize(
    ("target", "train", "efforts"),
    [
        ("fusemoe_mimic.py:tiny", {}, ("little", "some")),  # evaluated without every modality
        ("flexmoe_physionet2012.py:tiny", {}, ("little", "little")),
        ("fusemoe_mimic.py:demo", {}, ("some", "some")),
        ("fusemoe_mimic.py:synthetic", {}, ("full", "some")),
        ("fusemoe_mimic.py:synthetic", {"compile": "full"}, ("full", "full")),
        ("fusemoe_physionet2012.py", {}, ("full", "full")),
    ],
)
def test_short_runs_are_compiled_with_less_effort(target, train, efforts):
    flags = [f"--config.train.{name}={value}" for name, value in train.items()]
    config = configs.load(configs.parse([f"--config={ROOT}/configs/{target}", *flags]))
    assert (compiler.step_effort(config), compiler.predict_effort(config)) == efforts
