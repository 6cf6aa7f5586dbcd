"""What a configuration may contain: one table of fields, and what holds between them.

A new field is a line of `FIELDS`. Its choices are read from the code that implements them, when
it has another value than its default; nothing here imports JAX, a method or a data set before.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from m4.config import code
from m4.config.hints import nearest
from m4.data import data_sets
from m4.resolve import resolve
from m4.specs import METRICS, DataSpec, TaskKind

REQUIRED = object()
OF_METHODS = ("segmentation", "cluster")  # kinds of tasks whose loss belongs to a method
WRITERS = ("tensorboard", "mlflow", "wandb")
MOVE_ROWS = ("soft", "expert_choice", "product_keys")  # routers that need no engine
BASELINES = ("boosting", "default boosting", "late", "linear", "presence")
KINDS = {int: "an integer", float: "a finite number", bool: "true or false"}
KINDS |= {tuple: "a tuple, as ('a', 'b')", dict: "a dict, as {'a': 1}", str: "text"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Type, default and allowed values of one field.

    `low` and `high` are inclusive, `above` and `below` exclusive. `names` yields the allowed
    names; with `outside`, a name that is none of them is right if that call accepts it, and
    raises ValueError or ImportError otherwise ('package.module:name'). `also` are words that a
    field takes besides its type; a final K in one stands for a whole number from 1 on. `several`
    fields take more than one, with commas between them or as a list.
    """

    kind: type = object
    default: Any = REQUIRED  # ...: left out
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    names: Callable[[], Sequence[str]] | None = None
    outside: Callable[[str], Any] | None = None
    optional: bool = False
    also: tuple[str, ...] = ()
    several: bool = False

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.also:
            *words, last = KINDS[self.kind], *self.also
            return f"{', '.join(words)} or {last}" + ", with commas" * self.several
        if self.names is not None:
            words = "one of " + ", ".join(self.names())
            return words + (" or 'package.module:name'" if self.outside else "")
        bounds = {"at least": self.low, "above": self.above}
        bounds |= {"at most": self.high, "below": self.below}
        limits = " and ".join(f"{word} {x}" for word, x in bounds.items() if x is not None)
        return f"{KINDS.get(self.kind, f'a {self.kind.__name__}')} {limits}".rstrip()

    def problem(self, value: Any) -> str | None:
        """Why `value` is refused (in words that follow "field=value: "), or None."""
        if value is None and self.optional or self.names and value == self.default:
            return None
        said = _several(value) if self.several else [value]
        if all(isinstance(v, str) and any(_is_word(v, word) for word in self.also) for v in said):
            return None
        if not self._right_type(value) or not self._in_range(value):
            return f"must be {self.allowed()}"
        if self.names is None or value in self.names():
            return None
        why = ""
        if self.outside and isinstance(value, str) and (":" in value or "." in value):
            try:
                return None if self.outside(value) else f"must be {self.allowed()}"
            except Exception as error:  # foreign code is imported here
                first = (str(error).splitlines() or [""])[0]
                expected = isinstance(error, ImportError | ValueError)
                why = f" ({first})" if expected else f" ({type(error).__name__}: {first})"
        return f"must be {self.allowed()}{why}{nearest(str(value), self.names())}"

    def _right_type(self, value: Any) -> bool:
        kinds = {object: object, dict: Mapping, float: int | float}
        if isinstance(value, bool):
            return self.kind in (bool, object)
        return isinstance(value, kinds.get(self.kind, self.kind))

    def _in_range(self, value: Any) -> bool:
        if self.kind not in (int, float):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def _several(value: Any) -> list[Any]:
    """What a list or a text with commas holds; a value is one by itself."""
    if isinstance(value, str):
        return value.split(",")
    return [*value] if isinstance(value, list | tuple) and value else [value]


def _is_word(value: str, word: str) -> bool:
    stem, number = word.removesuffix("K"), value.removeprefix(word.removesuffix("K"))
    if word == stem:
        return value == word
    return value.startswith(stem) and number.isdecimal() and number.isascii() and int(number) > 0


def _of(target: str, *more: str) -> Callable[[], tuple[str, ...]]:
    """Choices that a table or a Literal in the code names: 'package.module:NAME'."""

    def names() -> tuple[str, ...]:
        found = resolve(target, "")
        return (*more, *(get_args(found) or found))

    return names


def _count(default: Any = REQUIRED, low: int = 1) -> Rule:
    return Rule(int, default, low=low)


FIELDS: dict[str, Rule] = {
    "seed": Rule(int, 0, low=0, below=2**31),
    "data.name": Rule(str, names=data_sets.names, outside=code.data_module),
    "data.raw_dir": Rule(str, ""),
    "data.dir": Rule(str, ""),
    "data.options": Rule(dict, {}),
    "data.seed": Rule(int, None, low=0, below=2**31, optional=True),  # of the split; None: seed
    "data.also_train": Rule(
        str, "none", names=_of("m4.data.held_in:WHICH")
    ),  # splits that train too
    "data.leave_out": Rule(str, ""),  # 'site=North'; in cross-validation 'site', all in turn
    "data.calibration": Rule(float, 0.0, low=0, high=0.5),  # share of the training patients
    "method.name": Rule(str, names=code.method_names, outside=code.method_class),
    "text.file": Rule(str, ""),  # safetensors of a BERT that reads all text; '': none
    "text.tuning": Rule(str, "frozen", names=_of("m4.nn.pretrained.wrapper:Tuning")),
    "text.pooling": Rule(str, "first", names=_of("m4.nn.pretrained.bert:Pooling")),
    "text.num_heads": _count(0, low=0),  # 0: one per 64 of its width
    "text.dropout": Rule(float, 0.0, low=0, below=1),
    "image.file": Rule(str, ""),  # safetensors of a ViT or ResNet that reads all images; '': none
    "image.tuning": Rule(str, "frozen", names=_of("m4.nn.pretrained.wrapper:Tuning")),
    "image.pooling": Rule(str, "auto", names=_of("m4.nn.pretrained.bert:Pooling", "auto")),
    "image.scale": Rule(str, "auto", names=_of("m4.nn.pretrained.images:SCALES", "auto")),
    "image.num_heads": _count(0, low=0),  # of a ViT; 0: one per 64 of its width
    "image.dropout": Rule(float, 0.0, low=0, below=1),  # of a ViT
    "conv.width": _count(0, low=0),  # channels of encoders from scratch; 0: none
    "conv.depth": _count(3),
    "conv.dropout": Rule(float, 0.0, low=0, below=1),
    "conv.frames": Rule(str, "samples", names=_of("m4.nn.encoders.convolution:Frames")),
    "conv.centre": Rule(float, 0.0, low=0, high=1),  # share of a channel's mean taken away
    "conv.alone": Rule(float, 0.0, low=0),  # weight of the losses of what each says by itself
    "optim.name": Rule(str, "adamw", names=_of("m4.train.optim:OPTIMISERS")),
    "optim.lr": Rule(float, above=0),
    "optim.schedule": Rule(str, "cosine", names=_of("m4.train.optim:SCHEDULES")),
    "optim.warmup_steps": _count(0, low=0),
    "optim.end_fraction": Rule(float, 0.0, low=0, high=1),
    "optim.weight_decay": Rule(float, 0.0, low=0),
    "optim.clip_norm": Rule(float, 0.0, low=0),
    "optim.b1": Rule(float, 0.9, low=0, below=1),
    "optim.b2": Rule(float, 0.999, low=0, below=1),
    "optim.eps": Rule(float, 1e-8, above=0),
    "optim.ema": Rule(float, 0.0, low=0, below=1),
    "optim.halve": Rule(bool, False),  # a task's rate where its validation loss did not fall
    "optim.shard": Rule(bool, False),  # moments and average split over mesh.data
    "train.from": Rule(str, ""),  # work directory whose best parameters are begun with; '': none
    "train.steps": _count(),
    "train.until": _count(0, low=0),  # the step that ends the run, whose schedule goes on; 0: steps
    "train.batch_size": _count(),
    "train.precision": Rule(str, "float32", names=_of("m4.train.precision:Precision")),
    "train.remat": Rule(str, "none", names=_of("m4.train.remat:Remat")),  # computed again
    # Of XLA on a CPU, for short runs of small models; 'auto': by the rows of a run.
    "train.compile": Rule(str, "auto", names=_of("m4.run.compiler:Effort", "auto")),
    "train.accumulate": _count(1),  # micro-batches that a batch is taken in
    "train.log_every": _count(50),
    "train.eval_every": _count(500),
    "train.save_every": _count(500),
    "train.keep": _count(2),
    "train.keep_every": _count(0, low=0),
    "train.profile": _count(0, low=0),  # steps that are traced for xprof; 0: none
    "train.writers": Rule(tuple, ("tensorboard",)),  # beside metrics.jsonl
    "train.watchdog": Rule(float, 60.0, low=0),  # seconds; 0: off
    "train.select": Rule(str),
    "train.choose": Rule(str, "best", names=lambda: ("best", "last")),
    "train.max_bad": _count(10),  # skipped steps in a row that end a run
    "train.spike_window": _count(0, low=0),  # accepted steps that a spike is judged by; 0: off
    "train.modality_dropout": Rule(float, 0.0, low=0, below=1),
    "train.ranking": Rule(float, 0.0, low=0),  # of more modalities over fewer; 0: no second pass
    "train.augment": Rule(dict, {}),  # by modality, see m4.data.augment; {}: nothing
    "train.segment_dropout": Rule(float, 0.0, low=0, below=1),
    "train.segment_share": Rule(float, 0.5, above=0, high=1),
    "train.task_weights": Rule(dict, {}),
    "train.order": Rule(str, "shuffled", names=_of("m4.data.sampling:ORDERS")),
    "train.order_epochs": _count(0, low=0),
    "train.streams": Rule(str, "none", names=_of("m4.data.task_streams:HOW", "none")),
    "train.stream_ratio": Rule(dict, {}),
    "train.buckets": Rule(tuple, ()),  # lengths to which batches are cut, see m4.data.buckets
    "train.missing": Rule(dict, {}),  # kind and arguments, see m4.data.missing; {}: nothing
    "eval.batch_size": _count(),
    "eval.missing": Rule(dict, {}),
    "eval.bootstrap": _count(1000),
    "eval.subsets": Rule(bool, True, also=("auto", "all", "sample:K")),  # see m4.eval.subsets
    "eval.baselines": Rule(bool, True, also=BASELINES, several=True),  # see m4.eval.baselines
    "eval.min_patients": _count(10),
    "eval.alpha": Rule(float, 0.1, above=0, below=0.5),  # patients outside sets and intervals
    "eval.costs": Rule(dict, {}),  # of modalities, as tests that come next; 1 where none is given
    "eval.budget": Rule(float, 0.0, low=0),  # a patient; 0: half of a test of mean cost
    "mesh.data": _count(-1, low=-1),  # -1, here or for one other axis: the rest of the devices
    "mesh.fsdp": _count(1, low=-1),
    "mesh.expert": _count(1, low=-1),
    "mesh.tensor": _count(1, low=-1),
    "mesh.slices": _count(-1, low=-1),  # parts with slow links between them; -1: as they are
    "mesh.across": Rule(str, "data", names=_of("m4.sharding:AXES")),  # axis between slices
}


@functools.cache
def method_rules(cls: type) -> dict[str, Rule]:
    """The rules of a method's fields, by path; fields of a nested dataclass stand each alone."""
    rules = {}
    for path, field in code.fields(cls):
        section, _, name = path.rpartition(".")
        limits: dict[str, Any] = {}
        size = name.startswith(("num_", "top_k")) or name.rpartition("_")[2] in code.SIZES
        if field.kind is int and size:
            limits["low"] = min(1, field.default) if isinstance(field.default, int) else 1
            limits["low"] *= not name.endswith("_depth")  # of a part that can be left out
        elif field.kind is float and "dropout" in name:
            limits = {"low": 0, "below": 1}
        elif field.kind is str and field.choices:
            limits["names"] = functools.partial(tuple, field.choices)
        elif field.kind is str and section and name in code.layer().ROOMS:
            limits["names"] = functools.partial(code.layer().choices, name)
            limits["outside"] = functools.partial(_function, code.layer().ROOMS[name][0])
        default = REQUIRED if field.default is dataclasses.MISSING else field.default
        rules[f"method.{path}"] = Rule(field.kind, default, optional=field.optional, **limits)
    return rules


def _function(room: str, name: str) -> bool:
    return callable(resolve(name, f"m4.moe.{room}"))


def loss_problems(values: Mapping[str, Any], fields: Mapping[str, Rule]) -> list[str]:
    """Names in `method.aux_weights` that are no loss of the method, and weights that are none.

    A method's own losses stand in the default; one with a router takes those of `m4.moe.losses`.
    """
    head = "method.aux_weights"
    own = fields[head].default if head in fields else None
    weights = {p.removeprefix(f"{head}."): v for p, v in values.items() if p.startswith(f"{head}.")}
    if not weights or not isinstance(own, Mapping):
        return []
    routes = any(path.endswith(".router") for path in fields)
    known = tuple(dict.fromkeys((*own, *(code.layer().known("losses") if routes else ()))))
    problems = []
    for name, value in weights.items():
        wrong = Rule(float, low=0).problem(value)
        if name not in known:
            hint = f"it has: {', '.join(known)}{nearest(name, known)}"
            problems.append(f"{head}.{name}: no such loss; {hint}")
        elif wrong:
            problems.append(f"{head}.{name}={value!r}: {wrong}")
    return problems


def layer_problems(method: Mapping[str, Any], cls: type) -> list[str]:
    """What cannot work in a section of a method that is a layer's, `moe`: options of its gate, ...

    `method` is the nested section of a configuration, all of whose fields are right in themselves.
    """
    problems = []
    for field in dataclasses.fields(cls):
        if type(field.default).__module__ != code.layer().__name__:
            continue
        given = method[field.name]
        default: Any = field.default
        options = dataclasses.replace(default, **given)
        losses = [n for n in method.get("aux_weights", {}) if n in code.layer().known("losses")]
        for line in code.layer().problems(options, losses):
            if line.startswith("losses: "):
                problems.append(f"method.aux_weights: {line.removeprefix('losses: ')}")
                continue
            named = line.startswith(tuple(given))
            problems.append(f"method.{field.name}{'.' if named else ': '}{line}")
        problems += [f"method.{field.name}.{line}" for line in _idle(given, default)]
    return problems


def _idle(given: Mapping[str, Any], default: Any) -> list[str]:
    """Options of a layer that were set but have no effect beside its router and engine."""
    router, reasons = given.get("router"), {}
    if router in MOVE_ROWS:
        why = f"router={router!r} brings rows to experts itself"
        reasons |= dict.fromkeys(("engine", "capacity", "replicas"), why)
    elif given.get("engine") == "dense":
        reasons["capacity"] = "engine='dense' runs every expert on every row"
    if router is not None and not code.layer().grouped(router):
        reasons["num_groups"] = f"router={router!r} has no groups of experts"
    return [
        f"{name}={given[name]!r}: has no effect, {why}; leave it out"
        for name, why in reasons.items()
        if name in given and given[name] != getattr(default, name)
    ]


def cross_problems(values: Mapping[str, Any]) -> list[str]:
    """Conflicts between fields of a flat configuration `{"train.steps": 100, ...}`."""
    axes = {path: n for path, n in values.items() if path.startswith("mesh.") and n in (0, -1)}
    problems = [f"{path}=0: must be at least 1, or -1" for path, n in axes.items() if n == 0]
    rest = [path for path in axes if path not in ("mesh.slices", "mesh.data")]
    if len(rest) > 1:
        problems.append(f"{'=-1 and '.join(rest)}=-1: only one axis can take the rest")
    if problems:
        return problems
    v: dict[str, Any] = {**values} | dict.fromkeys(axes, 1)  # the rest is known when devices are
    rows = v["mesh.data"] * v["mesh.fsdp"] * v["mesh.expert"]
    for field in ("train.batch_size", "eval.batch_size"):
        if v[field] % rows:
            problems.append(
                f"{field}={v[field]}: must be a multiple of mesh.data*fsdp*expert={rows}"
            )
    if v["train.accumulate"] > 1 and v["train.batch_size"] % (rows * v["train.accumulate"]):
        problems.append(
            f"train.accumulate={v['train.accumulate']}: must cut train.batch_size="
            f"{v['train.batch_size']} into multiples of mesh.data*fsdp*expert={rows}"
        )
    if v["optim.warmup_steps"] > v["train.steps"]:
        problems.append(
            f"optim.warmup_steps={v['optim.warmup_steps']}: must be at most"
            f" train.steps={v['train.steps']}"
        )
    if v["optim.name"] == "adam" and v["optim.weight_decay"]:
        problems.append(
            f"optim.weight_decay={v['optim.weight_decay']}: adam has no decoupled decay;"
            " try --config.optim.name=adamw"
        )
    if v["optim.halve"] and v["train.streams"] not in ("batches", "sequential"):
        problems.append(
            "optim.halve=True: needs batches of one task each; set train.streams to batches or"
            " sequential"
        )
    lengths, one = v["train.buckets"], Rule(int, low=1)
    if any(map(one.problem, lengths)) or [*lengths] != sorted({*lengths}):
        problems.append(f"train.buckets={lengths}: must be lengths that increase, from 1 on")
    if (
        lengths
        and v["train.order_epochs"]
        and v["train.order"] in ("complete_first", "complete_last")
    ):
        problems.append(f"train.order={v['train.order']!r}: sorts rows, and train.buckets does too")
    problems += _writer_problems(v["train.writers"])
    metric = v["train.select"].rpartition("/")[2]
    known = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
    if metric not in known:
        problems.append(
            f"train.select={v['train.select']!r}: must be '<task>/<metric>' with a metric of"
            f" {', '.join(known)}{nearest(metric, known)}"
        )
    sections = sorted({p.rpartition(".")[0] for p in v if p.endswith(".num_experts")})
    expert = values["mesh.expert"]
    if expert != 1 and not sections:
        problems.append(f"mesh.expert={expert}: must be 1, this method has no experts")
    for section in sections:
        problems += _expert_problems(section, v)
    return problems


def _writer_problems(writers: Sequence[Any]) -> list[str]:
    return [
        f"train.writers={name!r}: must be of {', '.join(WRITERS)}{nearest(str(name), WRITERS)}"
        for name in writers
        if name not in WRITERS
    ]


def _expert_problems(section: str, v: Mapping[str, Any]) -> list[str]:
    field, problems = f"{section}.num_experts", []
    num_experts, top_k, axis = v[field], v.get(f"{section}.top_k"), v["mesh.expert"]
    if isinstance(top_k, int) and top_k > num_experts:
        problems.append(
            f"{section}.top_k={top_k}: must be at most {field}={num_experts};"
            f" try --config.{section}.top_k={num_experts}"
        )
    if num_experts % axis:
        problems.append(f"{field}={num_experts}: must be a multiple of mesh.expert={axis}")
    return problems


def data_problems(values: Mapping[str, Any], spec: DataSpec) -> list[str]:
    """What of a nested configuration doesn't fit the tasks of a data set."""
    kinds: dict[str, TaskKind] = {task.name: task.kind for task in spec.tasks}
    problems = []
    tasks, listed = tuple(kinds), ", ".join(kinds)
    select = values["train"]["select"]
    task, _, metric = select.rpartition("/")
    if not task:
        first = next((name for name in tasks if METRICS.get(kinds[name])), tasks[0])
        has = METRICS.get(kinds[first], ())
        example = metric if metric in has or not has else has[0]
        problems.append(
            f"train.select={select!r}: must be '<task>/<metric>', as {first}/{example}; tasks are"
            f" {listed}{nearest(metric, has) if metric and metric not in has else ''}"
        )
    elif task not in kinds:
        problems.append(f"train.select={select!r}: tasks are {listed}{nearest(task, tasks)}")
    elif metric not in METRICS.get(kinds[task], ()):
        has = METRICS.get(kinds[task], ())
        problems.append(
            f"train.select={select!r}: a {kinds[task]} task has {', '.join(has)}"
            f"{nearest(metric, has)}"
        )
    left = values.get("data", {}).get("leave_out", "")
    if left and left.partition("=")[0] not in spec.groups:
        known = ", ".join(spec.groups) or "none here"
        problems.append(f"data.leave_out={left!r}: group columns are {known}")
    for name, cost in values.get("eval", {}).get("costs", {}).items():
        wrong = Rule(float, above=0).problem(cost)
        if name not in spec.modality_names:
            hint = nearest(name, spec.modality_names)
            problems.append(
                f"eval.costs.{name}: modalities are {', '.join(spec.modality_names)}{hint}"
            )
        elif wrong:
            problems.append(f"eval.costs.{name}={cost!r}: {wrong}")
    for field in ("task_weights", "stream_ratio"):
        for name, weight in values["train"].get(field, {}).items():
            wrong = Rule(float, low=0).problem(weight)
            if name not in tasks:
                hint = nearest(name, tasks)
                problems.append(f"train.{field}.{name}: tasks are {listed}{hint}")
            elif wrong:
                problems.append(f"train.{field}.{name}={weight!r}: {wrong}")
    if ranking := values["train"].get("ranking"):
        problems += _ranking_problems(ranking, spec)
    return problems


def _ranking_problems(weight: float, spec: DataSpec) -> list[str]:
    """Why rows with more modalities cannot be compared with rows with fewer."""
    if len(spec.modalities) < 2:
        return [f"train.ranking={weight}: must be 0 with a single modality, which no row can lack"]
    lone = [f"{task.name} ({task.kind})" for task in spec.tasks if task.kind in OF_METHODS]
    what = f"train.ranking={weight}: must be 0 with tasks that have no loss per row"
    return [f"{what}: {', '.join(lone)}"] if lone else []
