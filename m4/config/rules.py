"""What a configuration may contain: one table of fields, one list of cross-field rules.

Nothing here imports JAX, a method or a data set: fields of methods and names of gates, data
sets and methods are read from source (`m4.config.schema`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from m4.config import schema
from m4.config.hints import nearest

REQUIRED = object()
_MULTI = ("auroc", "auprc", "f1")
_PROBABILITY = ("brier", "ece", "log_loss")
_IMAGE = ("first", "mean", "pooler", "tokens")  # m4.nn.pretrained.images
_ORDERS = ("shuffled", "complete_first", "complete_last", "complete_only")  # m4.data.loader
METRICS = {  # of each task kind, as in m4.eval.metrics
    "binary": ("auroc", "auprc", "f1", *_PROBABILITY),
    "multilabel": tuple(f"{m}_{how}" for m in _MULTI for how in ("macro", "micro")) + _PROBABILITY,
    "multiclass": ("auroc_macro", "f1_macro", "accuracy", *_PROBABILITY),
    "regression": ("mae", "rmse", "r2", "spearman"),
    "survival": ("c_index",),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Type, default and allowed values of one field.

    `low` and `high` are inclusive, `above` and `below` exclusive. `names` yields the allowed
    names when it is called; `outside` also allows `pkg.mod:name` (or `pkg.mod` for a module) of
    an importable module.
    """

    kind: type = object
    default: Any = REQUIRED
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    names: Callable[[], tuple[str, ...]] | None = None
    outside: bool = False
    optional: bool = False

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.names is not None:
            words = "one of " + ", ".join(self.names())
            return words + (" or 'package.module:name'" if self.outside else "")
        kinds = {int: "an integer", float: "a finite number", bool: "true or false"}
        words = kinds.get(self.kind, f"a {self.kind.__name__}")
        bounds = (("at least", self.low), ("above", self.above))
        bounds += (("at most", self.high), ("below", self.below))
        limits = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
        return f"{words} {limits}".rstrip()

    def problem(self, value: Any) -> str | None:
        """Why `value` is refused (in words that follow "field=value: "), or None."""
        if value is None and self.optional:
            return None
        if not self._right_type(value) or not self._in_range(value):
            return f"must be {self.allowed()}"
        if self.names is None or value in self.names():
            return None
        if self.outside and schema.found(value):
            return None
        return f"must be {self.allowed()}{nearest(str(value), self.names())}"

    def _right_type(self, value: Any) -> bool:
        if self.kind is object:
            return True
        if self.kind is dict:
            return isinstance(value, Mapping)
        if self.kind is float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind is int:
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, self.kind)

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


def _one_of(*names: str) -> Callable[[], tuple[str, ...]]:
    return lambda: names


def _count(default: Any = REQUIRED, low: int = 1) -> Rule:
    return Rule(int, default, low=low)


FIELDS: dict[str, Rule] = {
    "seed": Rule(int, 0, low=0, below=2**31),
    "data.name": Rule(str, names=schema.data_names, outside=True),
    "data.raw_dir": Rule(str, ""),
    "data.dir": Rule(str, ""),
    "data.options": Rule(dict, {}),
    "method.name": Rule(str, names=schema.method_names, outside=True),
    "text.file": Rule(str, ""),  # safetensors of a BERT that reads all text; '': none
    "text.tuning": Rule(str, "frozen", names=_one_of("frozen", "tuned")),
    "text.pooling": Rule(str, "first", names=_one_of("first", "mean", "pooler", "tokens")),
    "text.num_heads": _count(0, low=0),  # 0: one per 64 of its width
    "text.dropout": Rule(float, 0.0, low=0, below=1),
    "image.file": Rule(str, ""),  # safetensors of a ViT or ResNet that reads all images; '': none
    "image.tuning": Rule(str, "frozen", names=_one_of("frozen", "tuned")),
    "image.pooling": Rule(str, "auto", names=_one_of("auto", *_IMAGE)),
    "image.scale": Rule(str, "auto", names=_one_of("auto", "unit", "half", "imagenet")),
    "image.num_heads": _count(0, low=0),  # of a ViT; 0: one per 64 of its width
    "image.dropout": Rule(float, 0.0, low=0, below=1),  # of a ViT
    "optim.name": Rule(str, "adamw", names=_one_of("adam", "adamw", "lion", "sgd")),
    "optim.lr": Rule(float, above=0),
    "optim.schedule": Rule(str, "cosine", names=_one_of("constant", "cosine", "linear")),
    "optim.warmup_steps": _count(0, low=0),
    "optim.end_fraction": Rule(float, 0.0, low=0, high=1),
    "optim.weight_decay": Rule(float, 0.0, low=0),
    "optim.clip_norm": Rule(float, 0.0, low=0),
    "optim.b1": Rule(float, 0.9, low=0, below=1),
    "optim.b2": Rule(float, 0.999, low=0, below=1),
    "optim.eps": Rule(float, 1e-8, above=0),
    "optim.ema": Rule(float, 0.0, low=0, below=1),
    "train.steps": _count(),
    "train.batch_size": _count(),
    "train.log_every": _count(50),
    "train.eval_every": _count(500),
    "train.save_every": _count(500),
    "train.keep": _count(2),
    "train.keep_every": _count(0, low=0),
    "train.watchdog": Rule(float, 60.0, low=0),
    "train.select": Rule(str),
    "train.choose": Rule(str, "best", names=_one_of("best", "last")),
    "train.max_bad": _count(10),  # skipped steps in a row that end a run
    "train.spike_window": _count(0, low=0),  # accepted steps that a spike is judged by; 0: off
    "train.modality_dropout": Rule(float, 0.0, low=0, below=1),
    "train.segment_dropout": Rule(float, 0.0, low=0, below=1),
    "train.segment_share": Rule(float, 0.5, above=0, high=1),
    "train.task_weights": Rule(dict, {}),
    "train.order": Rule(str, "shuffled", names=_one_of(*_ORDERS)),
    "train.order_epochs": _count(0, low=0),
    "train.streams": Rule(str, "none", names=_one_of("none", "rows", "batches", "sequential")),
    "train.stream_ratio": Rule(dict, {}),
    "train.buckets": Rule(tuple, ()),  # lengths to which batches are cut, see m4.data.buckets
    "eval.batch_size": _count(),
    "eval.bootstrap": _count(1000),
    "eval.subsets": Rule(bool, True),
    "eval.baselines": Rule(bool, True),
    "eval.min_patients": _count(10),
    "mesh.data": _count(1),
    "mesh.fsdp": _count(1),
    "mesh.expert": _count(1),
    "mesh.tensor": _count(1),
}

# Limits for method fields, whichever method has them; types come from the method's source.
METHOD_LIMITS: dict[str, dict[str, Any]] = {
    "gate": {"names": schema.gate_names, "outside": True},
    "fidelity": {"names": _one_of("released", "paper", "m4")},
    "dispatch": {"names": _one_of("auto", "dense", "capacity", "dropless")},
    "dtype": {"names": _one_of("float32", "bfloat16", "float16")},
    "num_*": {"low": 1},
    "top_k*": {"low": 1},
    "width": {"low": 1},
    "hidden": {"low": 1},
    "statistics_hidden": {"low": 0},
    "depth": {"low": 1},
    "heads": {"low": 1},
    "*dropout*": {"low": 0, "below": 1},
    "capacity_factor": {"above": 0},
}


def cross_problems(values: Mapping[str, Any]) -> list[str]:
    """Conflicts between fields of a flat configuration `{"train.steps": 100, ...}`."""
    v = values
    problems = []
    rows = v["mesh.data"] * v["mesh.fsdp"] * v["mesh.expert"]
    for field in ("train.batch_size", "eval.batch_size"):
        if v[field] % rows:
            problems.append(
                f"{field}={v[field]}: must be a multiple of mesh.data*fsdp*expert={rows}"
            )
    if v["optim.warmup_steps"] > v["train.steps"]:
        problems.append(
            f"optim.warmup_steps={v['optim.warmup_steps']}: must be at most"
            f" train.steps={v['train.steps']}"
        )
    lengths, one = v["train.buckets"], Rule(int, low=1)
    if any(map(one.problem, lengths)) or [*lengths] != sorted({*lengths}):
        problems.append(f"train.buckets={lengths}: must be lengths that increase, from 1 on")
    metric = v["train.select"].rpartition("/")[2]
    known = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
    if metric not in known:
        problems.append(
            f"train.select={v['train.select']!r}: must be '<task>/<metric>' with a metric of"
            f" {', '.join(known)}{nearest(metric, known)}"
        )
    return problems + _expert_problems(v)


def select_problem(select: str, kinds: Mapping[str, str]) -> str | None:
    """What is wrong with `train.select`, given the kind of every task of the data set."""
    task, _, metric = select.rpartition("/")
    if task not in kinds:
        listed = ", ".join(kinds)
        return f"train.select={select!r}: tasks are {listed}{nearest(task, tuple(kinds))}"
    if metric not in METRICS.get(kinds[task], ()):
        listed = ", ".join(METRICS.get(kinds[task], ()))
        return f"train.select={select!r}: a {kinds[task]} task has {listed}"
    return None


def weight_problem(weights: Mapping[str, Any], tasks: tuple[str, ...]) -> str | None:
    """What is wrong with `train.task_weights`, given the names of the data set's tasks."""
    positive = Rule(float, low=0)
    for task, weight in weights.items():
        if task not in tasks:
            listed = ", ".join(tasks)
            return f"train.task_weights.{task}: tasks are {listed}{nearest(task, tasks)}"
        problem = positive.problem(weight)
        if problem:
            return f"train.task_weights.{task}={weight!r}: {problem}"
    return None


def _expert_problems(v: Mapping[str, Any]) -> list[str]:
    problems = []
    num_experts, axis = v.get("method.num_experts"), v["mesh.expert"]
    if not isinstance(num_experts, int):
        if axis > 1:
            problems.append(f"mesh.expert={axis}: must be 1, this method has no experts")
        return problems
    top_k = v.get("method.top_k")
    if isinstance(top_k, int) and top_k > num_experts:
        problems.append(
            f"method.top_k={top_k}: must be at most method.num_experts={num_experts};"
            f" try --config.method.top_k={num_experts}"
        )
    if num_experts % axis:
        problems.append(
            f"method.num_experts={num_experts}: must be a multiple of mesh.expert={axis}"
        )
    return problems
