"""The command line: `python -m m4.main --config=FILE[:VARIANT] --workdir=DIR --mode=MODE`."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from m4 import local
from m4.config.hints import alias
from m4.errors import ConfigError
from m4.remote import places

MODES = ("train", "crossval", "eval", "predict", "check", "report", "sweep", "tim", "interplay")
MODES += ("plan", "scale", "stress", "ensemble", "refit")
OPTIONS = {
    "sweep": ("seeds", "task", "metrics", "methods", "how"),
    "tim": ("tasks", "permutations"),
}  # of one mode
OPTIONS |= {"ensemble": ("seeds", "members"), "refit": ("seeds",)}
OPTIONS |= {"plan": ("topology", "rows", "json")}
OPTIONS |= {"stress": ("kinds", "rates")}
OPTIONS |= {"scale": ("devices", "kind", "axis", "steps", "topology")}
SWITCHES = ("debug", "debug_nans", "trust_code", "help", "version", "list")
FORCE = ("config", "program", "best")  # what a run may be made to go on without
NAMES = ("config", "config_json", "workdir", "mode", "on", "force", "completion", *SWITCHES)
NAMES += tuple(name for names in OPTIONS.values() for name in names)
SHORT = {"-h": "--help", "-V": "--version"}
# What others call a flag.
SYNONYMS = {"output_dir": "workdir", "out": "workdir", "logdir": "workdir", "outdir": "workdir"}
SYNONYMS |= {
    "cfg": "config",
    "conf": "config",
    "override": "set",
    "input": "on",
    "resume": "workdir",
}
SYNONYMS |= {"force_config": "force", "verbose": "debug", "usage": "help"}
COMMANDS = {"test": "eval", "fit": "train", "resume": "train", "finetune": "train"}
COMMANDS |= {"infer": "predict", "inference": "predict", "score": "predict", "validate": "check"}
COMMANDS |= {"bag": "ensemble", "average": "ensemble", "retrain": "refit"}
COMMANDS |= {"cv": "crossval", "grid": "sweep", "run": "train", "evaluation": "eval"}
SECTIONS = ("data", "method", "optim", "train", "eval", "mesh", "text", "image", "conv")
SHELLS = ("bash", "zsh", "fish")
TOOLS = (
    "data",
    "lab",
    "audit",
    "export",
    "interop",
    "bench",
    "launch",
    "compare",
)  # beside the command, see `m4.__main__`
USAGE = """usage: m4-moe [MODE] --config=NAME[:VARIANT] [--set FIELD=VALUE ...] [--workdir=DIR]
       m4-moe predict --workdir=DIR [--on=DIR]     (also: python -m m4, python -m m4.main)
       m4-moe data|lab|audit|export|interop|bench|launch|compare --help

  --config        a shipped configuration (--list) or a file, and, after a colon, one of its
                  variants; without it, the configuration stored in the work directory
  --config_json   the same as plain data (a work directory's config.json, say): a configuration
                  file is a program that is run, this is only read
  --set a.b=v     replaces one field; also --config.a.b=v
  --workdir       where everything is written (default: runs/<config>[-<variant>]); gs://BUCKET/DIR
  --mode          or the bare word in front:
                  train    train or resume, then evaluate and report (default)
                  crossval train once per fold of patients, evaluate out of fold, pooled
                  refit    after crossval in the same work directory: train on all rows, nobody
                           held out, in its refit/; with several --seeds an ensemble
                  ensemble train --seeds=0,1,2 on one split and average what they predict, or join
                           finished runs or a cross-validation: --members=runs/a,runs/b
                  eval     evaluate the best checkpoint, or an ensemble
                  predict  write predictions of the test split
                  check    verify checkpoints; with --config also check configuration and
                           data, run one step, print sizes
                  report   rebuild report.html from the work directory
                  sweep    train several configurations (--config=A,B) with several --seeds=0,1,2
                           and put the --metrics of a --task in one table, in --workdir;
                           --methods=A,B or all: each with every method, on the same data;
                           --how=crossval: out of fold
                  tim      what training --tasks=A,B beside each other is worth to each of them
                           (Shapley values, sampled by --permutations=N)
                  interplay  how modalities and tasks compete in training
                  plan     what a run would cost on --topology=v5p:4x4x4, v6e:16x16, h200:8 or
                           cpu:8, without data or an accelerator; --rows=N puts N rows on every
                           chip, --json=FILE writes the figures
                  scale    speed on --devices=1,2,4,8, weak and strong (--kind), along an --axis:
                           --steps=20 timed steps each; planned for --topology=KIND where the
                           machine has fewer
                  stress   the best checkpoint on test data that lack more, drift or are noisy:
                           --kinds=mcar,mar,mnar,blocks,gaps,drift,noise at --rates=0.1,0.3,...
  --on            predict for all subjects of this folder of new raw files, with or without labels,
                  read as the training data were; needs --workdir alone
  --force=A,B     go on with a run although
                  config   its configuration differs, and so its program
                  program  its code, compiled, is another program
                  best     its best step is lost: one is chosen among those from here on
  --trust_code    run code outside m4 that a work directory names, without --config
  --debug_nans    when a run gives up on numbers that are not finite, run the last bad step again
                  and name the operation
  --debug         print tracebacks, which may quote data
  --list          configurations and their variants, methods, gates, routers, losses, data sets
  --completion    bash, zsh or fish: eval "$(m4-moe --completion=bash)" completes all of this
  --version, -h, --help

environment: M4_RAW_DIR   root of the raw files (raw), each data set in a folder of its own
             M4_DATA_DIR  where built data sets are kept (data)
             M4_CACHE     where compiled programs are kept (~/.cache/m4)
             M4_COORDINATOR, M4_NUM_PROCESSES, M4_PROCESS_ID  of several processes (m4-moe launch)

exit codes: 0 done, 1 bug, 2 usage or configuration, 3 data, 4 no usable checkpoint,
            5 diverged, 6 could not save, 7 hung, 75 stopped early: run the same command again"""


@dataclasses.dataclass(frozen=True)
class Flags:
    """A parsed command line."""

    config: str | None = None
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    workdir: Path | None = None
    mode: str = "train"
    on: Path | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)  # of the mode: `OPTIONS`
    config_json: str | None = None
    debug: bool = False
    debug_nans: bool = False
    force: tuple[str, ...] = ()  # of `FORCE`
    trust_code: bool = False
    help: bool = False
    version: bool = False
    list: bool = False
    completion: str = ""


def parse(args: Sequence[str]) -> Flags:
    """Arguments (without the program's name) -> Flags. Raises ConfigError with all problems."""
    found, overrides, problems = _read(args)
    mode = found.get("mode", "predict" if "on" in found else "train")
    options = {name: found[name] for names in OPTIONS.values() for name in names if name in found}
    problems += _conflicts(found, mode, options)
    if problems:
        raise ConfigError(*problems)
    return Flags(
        config=found.get("config"),
        config_json=found.get("config_json"),
        overrides=overrides,
        workdir=_workdir(found),
        mode=mode,
        on=local.folder(found["on"], "--on") if "on" in found else None,
        options=options,
        force=tuple(sorted({*found["force"].split(",")})) if "force" in found else (),
        completion=found.get("completion", ""),
        **{k: found.get(k, "false").lower() in ("true", "1") for k in SWITCHES},
    )


def _read(args: Sequence[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Flags and their values, fields and theirs, and what is wrong with each by itself."""
    found: dict[str, str] = {}
    overrides: dict[str, str] = {}
    problems = []
    queue = [SHORT.get(token, token) for token in args]
    if queue[:1] and queue[0] in MODES:  # `m4-moe predict` for --mode=predict
        queue[0] = f"--mode={queue[0]}"
    while queue:
        token = queue.pop(0)
        if token.startswith("--set=") or token == "--set":
            token, wrong = _field(token, queue)
            if wrong:
                problems.append(wrong)
                continue
        name, equals, value = token.lstrip("-").partition("=")
        known = name in NAMES or name.startswith("config.")
        if not token.startswith("-") or not known:
            problems.append(_unknown(token, name))
            if not token.startswith("-") and len(queue) == len(args) - 1:
                break  # a tool or mode that there isn't: what follows is its own
            continue
        if not equals:
            if name in SWITCHES:
                value = "true"
            elif queue and not queue[0].startswith("--"):
                value = queue.pop(0)
            else:
                problems.append(f"--{name}: needs a value, --{name}=...")
                continue
        path = name.removeprefix("config.")
        place, key = (overrides, path) if name != path else (found, name)
        if place.setdefault(key, value) != value:
            problems.append(f"--{name}: is given twice, as {place[key]} and as {value}")
        elif wrong := _wrong(name, value):
            problems.append(f"--{name}{wrong}")
    return found, overrides, problems


def _wrong(name: str, value: str) -> str | None:
    """What is wrong with a flag's value, in words that follow the flag; else None."""
    if name in SWITCHES and value.lower() not in ("true", "1", "false", "0"):
        return f"={value}: must be true or false"
    if name == "force" and not {*value.split(",")} <= {*FORCE}:
        return f"={value}: must be of {', '.join(FORCE)}"
    if name == "completion" and value not in SHELLS:
        return f"={value}: must be one of {', '.join(SHELLS)}"
    if name in ("workdir", "on") and not value:
        return f": needs a value, --{name}=..."
    if "\0" in value:
        return ": must not hold a NUL"
    if name == "workdir" and places.in_bucket(value):
        return None  # what the mode makes of it: `_conflicts`
    problem = local.problem(value) if name in ("workdir", "on") else None
    return problem and f"={value}: {problem}"


def _conflicts(found: Mapping[str, str], mode: str, options: Mapping[str, str]) -> list[str]:
    """What is wrong with flags together."""
    problems = []
    if "config" in found and "config_json" in found:
        problems.append("--config_json: cannot be given together with --config")
    if mode not in MODES:
        close = difflib.get_close_matches(mode, MODES, n=1)
        close = [COMMANDS[mode]] if mode in COMMANDS else close
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"--mode={mode}: must be one of {', '.join(MODES)}{hint}")
    for name in options.keys() - {*OPTIONS.get(mode, ())}:
        own = " or ".join(m for m, names in OPTIONS.items() if name in names)
        problems.append(f"--{name}: goes with --mode={own}, not with --mode={mode}")
    if "on" in found and not {"workdir", "config", "config_json"} & {*found}:
        problems.append("--on: needs --workdir, that of the run that is to predict")
    if "on" in found and mode in MODES and mode != "predict":
        problems.append(f"--on: goes with --mode=predict, not with --mode={mode}")
    place = found.get("workdir", "")
    if places.in_bucket(place) and (wrong := places.problem(place, mode)):
        problems.append(f"--workdir={place}: {wrong}")
    return problems


def _workdir(found: dict[str, str]) -> Path | None:
    if places.in_bucket(found.get("workdir", "")):
        return places.folder(found["workdir"])
    if "workdir" in found:
        return local.folder(found["workdir"], "--workdir", made=True)
    if found.get("mode") == "sweep":
        return Path("runs/results")
    if "config" not in found and "config_json" not in found:
        return None
    return workdir_of(found.get("config", found.get("config_json", "")))


def workdir_of(config: str) -> Path:
    """Where a run of a configuration is kept if nobody says where."""
    path, _, variant = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))


def _field(token: str, queue: list[str]) -> tuple[str, str]:
    """`--set a.b=v` as `--config.a.b=v`, and what is wrong with it; takes its value off `queue`."""
    inline = token.startswith("--set=")
    text = token.removeprefix("--set=") if inline else queue.pop(0) if queue else ""
    path, equals, _ = text.partition("=")
    if not equals or not path:
        return "", f"--set {text}: needs a field and a value, --set train.steps=500"
    return f"--config.{text.removeprefix('config.')}", ""


def _unknown(token: str, name: str) -> str:
    """What somebody may have meant by a word that is no flag."""
    bare = token.partition("=")[0]
    if not token.startswith("-"):
        if token in MODES:
            return f"{token}: a mode stands in front, or is given as --mode={token}"
        head, dot, _ = bare.partition(".")
        if "=" in token and dot and head.isidentifier():
            return f"{bare}: a field is replaced by --set {token}"
        if ":" in token or token.endswith(".py"):
            return f"{token}: unknown flag; did you mean --config={token}?"
        close = difflib.get_close_matches(token, (*MODES, *TOOLS), n=1)
        close = [COMMANDS[token]] if token in COMMANDS else close
        hint = f"; did you mean {close[0]}?" if close else "; see --help"
        return f"{bare}: unknown flag or command{hint}"
    head, dot, rest = name.partition(".")
    choices = ("config",) if dot else (*NAMES, "set")
    known = {**SYNONYMS, **{word: word for word in choices}}
    close = difflib.get_close_matches(head.lower().replace("-", "_"), known, n=1)
    hint = f"; did you mean --{known[close[0]]}{dot}{rest}?" if close else "; see --help"
    if dot and head in SECTIONS:
        hint = f"; did you mean --set {token.lstrip('-')}?"
    elif field := alias(name):
        hint = f"; did you mean --set {field}={token.partition('=')[2] or '...'}?"
    return f"{bare}: unknown flag{hint}"
