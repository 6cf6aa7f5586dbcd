"""The command line: `python -m m4.main --config=FILE[:VARIANT] --workdir=DIR --mode=MODE`."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

from m4 import local
from m4.errors import ConfigError

MODES = ("train", "crossval", "eval", "predict", "check", "report", "sweep", "tim", "interplay")
MODES += ("plan", "scale", "stress")
OPTIONS = {"sweep": ("seeds", "task", "metrics"), "tim": ("tasks", "permutations")}  # of one mode
OPTIONS |= {"plan": ("topology", "rows", "json")}
OPTIONS |= {"stress": ("kinds", "rates")}
OPTIONS |= {"scale": ("devices", "kind", "axis", "steps", "topology")}
SWITCHES = ("debug", "debug_nans", "trust_code", "help")
FORCE = ("config", "program", "best")  # what a run may be made to go on without
NAMES = ("config", "config_json", "workdir", "mode", "on", "force", *SWITCHES)
NAMES += tuple(name for names in OPTIONS.values() for name in names)
USAGE = """usage: python -m m4.main --config=FILE[:VARIANT] [--config.SECTION.FIELD=VALUE ...]
                         [--workdir=DIR] [--mode=MODE] [--on=DIR]

  --config        a configuration file and, after a colon, one of its variants;
                  without it, the configuration stored in the work directory
  --config_json   the same as plain data (a work directory's config.json, say): a configuration
                  file is a program that is run, this is only read
  --config.a.b=v  replaces one field
  --workdir       where everything is written (default: runs/<config>[-<variant>])
  --mode          train    train or resume, then evaluate and report (default)
                  crossval train once per fold of patients, evaluate out of fold, pooled
                  eval     evaluate the best checkpoint
                  predict  write predictions of the test split
                  check    verify checkpoints; with --config also check configuration and
                           data, run one step, print sizes
                  report   rebuild report.html from the work directory
                  sweep    train several configurations (--config=A,B) with several --seeds=0,1,2
                           and put the --metrics of a --task in one table, in --workdir
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


def parse(args: Sequence[str]) -> Flags:
    """Arguments (without the program's name) -> Flags. Raises ConfigError with all problems."""
    found: dict[str, str] = {}
    overrides: dict[str, str] = {}
    problems = []
    queue = list(args)
    while queue:
        token = queue.pop(0)
        name, equals, value = token.lstrip("-").partition("=")
        known = name in NAMES or name.startswith("config.")
        if not token.startswith("-") or not known:
            problems.append(_unknown(token, name))
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
    if "config" in found and "config_json" in found:
        problems.append("--config_json: cannot be given together with --config")
    mode = found.get("mode", "predict" if "on" in found else "train")
    if mode not in MODES:
        close = difflib.get_close_matches(mode, MODES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"--mode={mode}: must be one of {', '.join(MODES)}{hint}")
    options = {name: found[name] for names in OPTIONS.values() for name in names if name in found}
    for name in options.keys() - set(OPTIONS.get(mode, ())):
        own = next(m for m, names in OPTIONS.items() if name in names)
        problems.append(f"--{name}: goes with --mode={own}, not with --mode={mode}")
    if "on" in found and not {"workdir", "config", "config_json"} & {*found}:
        problems.append("--on: needs --workdir, that of the run that is to predict")
    if "on" in found and mode in MODES and mode != "predict":
        problems.append(f"--on: goes with --mode=predict, not with --mode={mode}")
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
        **{k: found.get(k, "false").lower() in ("true", "1") for k in SWITCHES},
    )


def _wrong(name: str, value: str) -> str | None:
    """What is wrong with a flag's value, in words that follow the flag; else None."""
    if name in SWITCHES and value.lower() not in ("true", "1", "false", "0"):
        return f"={value}: must be true or false"
    if name == "force" and not {*value.split(",")} <= {*FORCE}:
        return f"={value}: must be of {', '.join(FORCE)}"
    if name in ("workdir", "on") and not value:
        return f": needs a value, --{name}=..."
    if "\0" in value:
        return ": must not hold a NUL"
    problem = local.problem(value) if name in ("workdir", "on") else None
    return problem and f"={value}: {problem}"


def _workdir(found: dict[str, str]) -> Path | None:
    if "workdir" in found:
        return local.folder(found["workdir"], "--workdir")
    if found.get("mode") == "sweep":
        return Path("runs/results")
    if "config" not in found and "config_json" not in found:
        return None
    return workdir_of(found.get("config", found.get("config_json", "")))


def workdir_of(config: str) -> Path:
    """Where a run of a configuration is kept if nobody says where."""
    path, _, variant = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))


def _unknown(token: str, name: str) -> str:
    head, dot, rest = name.partition(".")
    choices = ("config",) if dot else NAMES
    close = difflib.get_close_matches(head, choices, n=1)
    hint = f"; did you mean --{close[0]}{dot}{rest}?" if close else "; see --help"
    return f"{token.partition('=')[0]}: unknown flag{hint}"
