"""Bad command lines and configurations; all are refused before data are read."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m4.config import program, rules
from tests.faults.catalogue import Case

GOOD = """
import ml_collections
VARIANTS = ('small',)
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic', options=dict(num_patients=120, steps=8)),
        method=dict(name='fusemoe', moe=dict(num_experts=8, top_k=2)),
        optim=dict(lr=0.01),
        train=dict(steps=100, batch_size=16, select='ihm48/auroc'),
        eval=dict(batch_size=16),
    ))
"""
PLAIN = {
    "data": {"name": "synthetic", "options": {"num_patients": 120, "steps": 8}},
    "method": {"name": "fusemoe", "moe": {"num_experts": 8, "top_k": 2}},
    "optim": {"lr": 0.01},
    "train": {"steps": 100, "batch_size": 16, "select": "ihm48/auroc"},
    "eval": {"batch_size": 16},
}

FLAGS = {
    "--confg=x": "did you mean --config",
    "--wrkdir=x": "did you mean --workdir",
    "--mod=train": "did you mean --mode",
    "--qqqqqq=1": "see --help",
    "stray": "unknown flag",
    "-": "unknown flag",
    "--": "unknown flag",
    "--=3": "unknown flag",
    "--confgi.optim.lr=1": "did you mean --config.optim.lr",
    "--mode=trian": "did you mean train",
    "--mode=": "must be one of train",
    "--mode=TRAIN": "must be one of train",
    "--mode=42": "must be one of train",
    "--mode": "needs a value",
    "--workdir=": "needs a value",
    "--config.optim.lr": "needs a value",
    "--debug=maybe": "must be true or false",
    "--force=2": "must be of config, program, best",
    "--config_json=x.json": "together with --config",
    "--config=other.py": "is given twice",
    "--n\x00ul=1": "unknown flag",
    "--🙂=1": "unknown flag",
}
# Override -> what must be said.
FIELDS = {
    # unknown: near, far, misplaced, called otherwise elsewhere, nested
    "train.step=5": ("train.step", "did you mean steps"),
    "train.bach_size=5": ("train.bach_size", "did you mean batch_size"),
    "optim.wieght_decay=1": ("optim.wieght_decay", "did you mean weight_decay"),
    "mesh.experts=1": ("mesh.experts", "did you mean expert"),
    "evl.batch_size=5": ("evl.batch_size", "eval.batch_size"),
    "optim.zzz=1": ("optim.zzz", "optim has: b1"),
    "zzz=1": ("zzz", "no such"),
    "zzz.yyy.xxx=1": ("zzz.yyy.xxx", "sections: conv, data"),
    "lr=0.1": ("lr", "did you mean optim.lr"),
    "optim.learning_rate=0.1": ("optim.learning_rate", "did you mean optim.lr"),
    "train.learning_rate=0.1": ("train.learning_rate", "did you mean optim.lr"),
    "optim.beta1=0.9": ("optim.beta1", "did you mean optim.b1"),
    "optim.momentum=0.9": ("optim.momentum", "did you mean optim.b1"),
    "optim.grad_clip=1": ("optim.grad_clip", "clip_norm"),
    "train.epochs=3": ("train.epochs", "did you mean train.steps"),
    "epochs=3": ("epochs", "did you mean train.steps"),
    "model.width=8": ("model.width", "method.width"),
    "model.foo=8": ("model.foo", "did you mean method"),
    "method.n_experts=8": ("method.n_experts", "method.moe.num_experts"),
    "method.k=8": ("method.k", "did you mean method.moe.top_k"),
    "dataset=mimic": ("dataset", "did you mean data.name"),
    "train.steps.more=1": ("train.steps.more", "no such"),
    "optim.lr.value=1": ("optim.lr.value", "no such"),
    ".=1": (".", "no such"),
    "..=1": ("..", "no such"),
    "train.=1": ("train.", "no such"),
    "=1": ("no such",),
    "train=3": ("train", "no such"),
    "data.options.num_patient=3": ("data.options.num_patient", "did you mean num_patients"),
    "data.options.zzz=3": ("data.options.zzz", "data.options has"),
    "data.options.steps.x=3": ("data.options.steps.x", "no such"),
    # values between fields
    "method.moe.top_k=9": (
        "method.moe.top_k=9",
        "method.moe.num_experts=8",
        "try --config.method.moe.top_k=8",
    ),
    "method.moe.num_experts=1": ("method.moe.top_k=2", "num_experts=1"),
    "mesh.expert=3": ("method.moe.num_experts=8", "mesh.expert=3"),
    "mesh.data=3": ("train.batch_size=16", "multiple"),
    "mesh.fsdp=5": ("eval.batch_size=16", "multiple"),
    "optim.warmup_steps=101": ("optim.warmup_steps=101", "train.steps=100"),
    "train.select=auroc": ("train.select", "tasks are"),
    "train.select=ihm48": ("train.select", "<task>/<metric>"),
    "train.select=ihm48/auc": ("train.select", "did you mean auroc"),
    "train.select=ihm24/auroc": ("train.select", "did you mean ihm48"),
    "train.select=los/auroc": ("train.select", "regression task has mae"),
    "train.task_weights={'los': -1}": ("train.task_weights.los=-1", "at least 0"),
    "train.task_weights={'lso': 1}": ("train.task_weights.lso", "did you mean los"),
    "train.task_weights={'los': 'x'}": ("train.task_weights.los", "finite number"),
    "eval.costs={'lab': 3}": ("eval.costs.lab", "did you mean labs"),
    "eval.costs={'labs': 0}": ("eval.costs.labs=0", "above 0"),
    "eval.costs={'labs': 'much'}": ("eval.costs.labs='much'", "finite number"),
    "eval.budget=-1": ("eval.budget=-1", "at least 0"),
    # methods and data sets
    "method.name=fusemoo": ("method.name='fusemoo'", "did you mean fusemoe"),
    "method.name=os:system": ("method.name", "must be one of"),
    "method.name=m4.methods.fusemoe.model:Nope": ("method.name", "must be one of"),
    "method.name=nope.nope:Nope": ("method.name", "must be one of"),
    "method.moe.gate=laplac": ("method.moe.gate='laplac'", "did you mean laplace"),
    "method.moe.gate=os:": ("method.moe.gate", "must be one of"),
    "method.moe.router=expertchoice": ("method.moe.router", "did you mean expert_choice"),
    "method.moe.router=lab.routers:none": ("method.moe.router", "package.module"),
    "method.moe.outer_gate=laplac": ("method.moe.outer_gate", "did you mean laplace"),
    "method.moe.activation=gelo": ("method.moe.activation", "did you mean gelu"),
    "method.moe.share=permode": ("method.moe.share", "did you mean permod"),
    "method.moe.engine=droples": ("method.moe.engine", "did you mean dropless"),
    "method.moe.gat=laplace": ("method.moe.gat", "did you mean gate"),
    "method.aux_weights.laod=1": ("method.aux_weights.laod", "did you mean load"),
    "method.aux_weights.load=x": ("method.aux_weights.load", "a finite number"),
    "method.router=joint": ("method.router", "method.moe.share"),
    "method.routing=top_k": ("method.routing", "method.moe.router"),
    "method.dispatch=dense": ("method.dispatch", "method.moe.engine"),
    "method.capacity_factor=2": ("method.capacity_factor", "method.moe.capacity"),
    "method.fidelity=papre": ("method.fidelity='papre'", "did you mean paper"),
    "method.moe.num_experts=-3": ("method.moe.num_experts=-3", "at least 1"),
    "method.moe.num_experts=2.5": ("method.moe.num_experts=2.5", "an integer"),
    "method.moe.num_experts=many": ("method.moe.num_experts=many", "an integer"),
    "method.width=0": ("method.width=0", "at least 1"),
    "method.dropout=1.0": ("method.dropout=1.0", "below 1"),
    "method.dropout=-0.1": ("method.dropout=-0.1", "at least 0"),
    "data.name=mimic": ("data.name='mimic'", "did you mean mimiciv"),
    "data.name=no.such.module": ("data.name", "package.module"),
    "data.options=5": ("data.options", "a dict"),
    "data.options.num_patients=none": ("data.options",),
    "data.options.num_patients=-5": ("num_patients", "-5"),
    "data.options.modalities=('vitals','xray')": ("modalities", "xray"),
    "data.options.tasks=('death',)": ("tasks", "death"),
    "data.options.tasks=()": ("tasks",),
    "data.options.steps=0": ("steps",),
}
BODY = "def get_config(variant=''):\n    "
PROGRAMS = {
    "missing": (None, "no such configuration file"),
    "empty": ("", "no function get_config"),
    "no get_config": ("x = 1\n", "no function get_config"),
    "get_config is no function": ("get_config = 3\n", "no function get_config"),
    "syntax": ("def get_config(:\n", "line 1"),
    "indentation": ("def get_config():\nreturn 1\n", "line 2"),
    "NUL bytes": (b"x = 1\x00\n", "x.py"),
    "not UTF-8": (b"x = '\xff\xfe'\n", "x.py"),
    "raises at import": ("import no_such_module_here\n", "ModuleNotFoundError"),
    "raises": (BODY + "raise ValueError('two\\nlines\\nof it')\n", "line 2: ValueError"),
    "key error": (BODY + "return {}['x']\n", "line 2: KeyError"),
    "exits": (BODY + "raise SystemExit(0)\n", "SystemExit"),
    "exits at import": ("import sys; sys.exit(0)\n", "SystemExit"),
    "endless recursion": (BODY + "return get_config()\n", "RecursionError"),
    "too many arguments": ("def get_config(a, b, c): return {}\n", "TypeError"),
    "assertion": (BODY + "assert False, 'no'\n", "AssertionError"),
    "returns nothing": (BODY + "pass\n", "returned NoneType"),
    "returns a number": (BODY + "return 3\n", "returned int"),
    "returns a list": (BODY + "return [1]\n", "returned list"),
    "returns an empty dict": (BODY + "return {}\n", "are missing from"),
    "section is a number": (BODY + "return dict(train=3)\n", "train"),
    "section is None": (BODY + "return dict(method=None)\n", "method"),
    "section is a list": (BODY + "return dict(data=[1, 2])\n", "data"),
    "key is a number": (BODY + "return {3: 4}\n", "3"),
}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _flags()
    yield from _fields()
    yield from _single_fields()
    yield from _files()
    yield from _plain()
    yield from _several()


def given(*args: str, text: str = GOOD) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = folder / "good.py"
        path.write_text(text)
        work = [] if any(a.startswith("--workdir") for a in args) else [f"--workdir={folder / 'w'}"]
        return [f"--config={path}", *work, *args]

    return make


def _alone(*args: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(args)


def _flags() -> Iterator[Case]:
    for flag, says in FLAGS.items():
        yield Case(f"flag {flag!r}", given(flag), 2, (says,))
    twice = ("--config.optim.lr=1", "--config.optim.lr=2")
    yield Case("a field twice", given(*twice), 2, ("--config.optim.lr", "given twice"))
    nowhere = ("--workdir=/nonexistent/w: no such work directory", "--config=")
    yield Case("no configuration", _alone("--workdir=/nonexistent/w"), 2, nowhere)
    yield Case("nothing at all", _alone(), 2, ("--config", "fusemoe_mimic.py"))


def _fields() -> Iterator[Case]:
    """Every field of the table with a value that it does not allow."""
    for path, rule in rules.FIELDS.items():
        wrong: list[Any] = []
        if rule.kind in (int, float):
            wrong += ["abc", "", "nan", "inf", "[1]", "1e400"]
            wrong += ["1.5"] if rule.kind is int else []
            for bound, beyond in ((rule.low, -1), (rule.high, 1), (rule.above, 0), (rule.below, 0)):
                wrong += [] if bound is None else [str(bound + beyond)]
        elif rule.kind is bool:
            wrong += ["maybe", "2"]
        elif rule.kind is dict:
            wrong += ["3", "[", "{'a'"]
        elif rule.names is not None:
            wrong += ["nonsense", "", "../x", "os:system"]
        for text in wrong:
            flag = f"--config.{path}={text}"
            says = (path.rpartition(".")[2], "must be")
            yield Case(f"{path}={text}", given(flag), 2, says)


def _single_fields() -> Iterator[Case]:
    for text, says in FIELDS.items():
        yield Case(f"--config.{text}", given(f"--config.{text}"), 2, says)
    deep = "(" * 5000
    for field in ("data.options", "data.options.tasks", "train.task_weights"):
        yield Case(f"{field} nested deep", given(f"--config.{field}={deep}"), 2, (field,))


def _files() -> Iterator[Case]:
    """Configuration files that are none, and programs that fail."""

    def named(name: str, content: str | bytes | None, *, ask: str = "", extra: str = ""):
        def make(folder: Path) -> list[str]:
            path = folder / name
            if content is not None:
                data = content.encode() if isinstance(content, str) else content
                path.write_bytes(data)
            return [f"--config={path}{ask}", f"--workdir={folder / 'w'}"]

        return make

    for name, (content, says) in PROGRAMS.items():
        yield Case(f"config {name}", named("x.py", content), 2, (says,))
    yield Case("config never returns", _endless, 2, ("does not return within",))
    values = ("object()", "{1, 2}", "lambda: 1", "b'x'", "1j", "open", "[1, None, object()]")
    for value in values:
        text = GOOD.replace("steps=8", f"steps=8, tasks={value}")
        yield Case(f"option {value}", given(text=text), 2, ("data.options.tasks",))
    yield Case("config is a folder", lambda folder: [f"--config={folder}"], 2, ("no such config",))
    yield Case("config is text", named("x.txt", GOOD), 2, ("no such configuration file",))
    yield Case("config has NUL", _alone("--config=a\x00b.py"), 2, ("--config", "NUL"))
    yield Case("no such variant", named("x.py", GOOD, ask=":smal"), 2, ("did you mean", "small"))
    yield Case("near a shipped name", _alone("--config=configs/fusemoe_mimi.py"), 2, ("did you",))
    for scheme in ("http", "https", "gs", "s3", "file", "ftp"):
        url = f"{scheme}://example.org/x.py"
        yield Case(f"config over {scheme}", _alone(f"--config={url}"), 2, ("must be a local file",))
        plain = f"--config_json={scheme}://example.org/x.json"
        yield Case(f"plain over {scheme}", _alone(plain), 2, ("must be a local file",))


def _endless(folder: Path) -> list[str]:
    (folder / "x.py").write_text("while True: pass\n")
    program.LIMIT_S = 0.3  # it would be eight seconds of a core
    return [f"--config={folder / 'x.py'}"]


def _plain() -> Iterator[Case]:
    """The same as data."""

    def written(text: str | bytes):
        def make(folder: Path) -> list[str]:
            data = text.encode() if isinstance(text, str) else text
            (folder / "x.json").write_bytes(data)
            return [f"--config_json={folder / 'x.json'}", f"--workdir={folder / 'w'}"]

        return make

    whole = json.dumps(PLAIN)
    texts = {
        "empty": ("", "is not JSON"),
        "cut short": (whole[:-20], "is not JSON"),
        "a list": ("[1, 2]", "must hold an object"),
        "a number": ("3", "must hold an object"),
        "a program": (GOOD, "is not JSON"),
        "not UTF-8": (b'{"seed": "\xff"}', "cannot be read"),
        "deep": ("[" * 100_000, "cannot be read"),
        "NaN": (whole.replace("0.01", "NaN"), "optim.lr"),
        "infinity": (whole.replace("0.01", "1e999"), "optim.lr"),
        "text for a number": (whole.replace("0.01", '"fast"'), "optim.lr='fast'"),
        "true for a number": (whole.replace("100", "true"), "train.steps=True"),
        "null": (whole.replace("100", "null"), "train.steps=None"),
        "a list for a number": (whole.replace("100", "[100]"), "train.steps"),
        "an object for a number": (whole.replace("100", '{"a": 1}'), "train.steps"),
        "an unknown field": (whole.replace('"lr"', '"lrr"'), "optim.lrr"),
        "an unknown section": (whole.replace('"optim"', '"optimise"'), "optimise"),
        "a dotted key": (whole.replace('"lr"', '"l.r"'), "optim"),
        "an empty key": (whole.replace('"lr"', '""'), "optim"),
        "a huge number": (whole.replace("100", "1" + "0" * 5000), "x.json"),
    }
    for name, (text, says) in texts.items():
        yield Case(f"plain {name}", written(text), 2, (says,))
    yield Case("plain missing", _alone("--config_json=/no/such.json"), 2, ("cannot be read",))
    yield Case("plain is a folder", _alone("--config_json=/tmp"), 2, ("cannot be read",))


def _several() -> Iterator[Case]:
    """Every problem of a configuration is reported at once."""
    three = ("--config.optim.lr=-1", "--config.train.step=5", "--config.method.moe.top_k=x")
    says = ("optim.lr=-1", "train.step", "method.moe.top_k=x")
    yield Case("three fields", given(*three), 2, says)
    two = ("--config.method.moe.top_k=9", "--config.optim.warmup_steps=101")
    yield Case("two rules", given(*two), 2, ("method.moe.top_k=9", "optim.warmup_steps=101"))
    flags = ("--a=1", "--b=2", "--mode=x")
    yield Case("three flags", given(*flags), 2, ("--a", "--b", "--mode=x"))
