"""`python -m m4.audit --config=FILE [--workdir=DIR]`; see `--help`."""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("audit.__main__")

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections

from m4 import config as configs
from m4 import local
from m4.audit import examine, findings
from m4.audit.findings import Finding
from m4.config import trust
from m4.errors import ConfigError, UserError, place
from m4.run import preflight

USAGE = """usage: python -m m4.audit --config=FILE[:VARIANT] [--config.SECTION.FIELD=VALUE ...]
                          [--workdir=DIR] [--json=FILE] [--no_data]

Does what must hold hold? One line a check: of the method on invented and real rows, of gates,
of the data, and of a trained run.

  --config     as of m4.main; method.name may be a class of your own, 'package.module:Class'
  --workdir    a trained run: its best parameters are audited too, and by its own program for
               predictions; without --config, the configuration stored there
  --json       also write the findings to this file, those before an error too
  --no_data    the method on invented rows alone; needs no raw files
  --debug      print tracebacks, which may quote data

What it costs: three small programs, of a prediction and a gradient of six rows, are compiled with
little optimisation and shared by all checks: about 10 to 60 CPU seconds a method, less a second
time with JAX_COMPILATION_CACHE_DIR set. Data are read twice. With --workdir the prediction of a
run that was not evaluated yet is compiled as well.

exit codes: 0 no alarm, 1 bug, 2 usage or configuration, 3 data, 4 no usable checkpoint,
            8 at least one alarm, 75 told to stop"""
ALARM = 8
OWN = ("json", "no_data")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A parsed command line."""

    flags: configs.Flags
    workdir: Path | None  # of a trained run, if one was named
    json: Path | None
    data: bool


def main(args: Sequence[str]) -> int:
    """Runs the audit and returns its exit code."""
    return cli.guard(run, args)


def run(args: Sequence[str]) -> int:
    """Runs the audit. Raises a UserError if it can't."""
    if {"--help", "-h"} & {*args}:
        print(USAGE)
        return 0
    asked = parse(args)
    trust.require_of(asked.flags)
    config = configs.load(asked.flags)
    local.require_variables()
    preflight.require(config, asked.flags.config, files=asked.data)
    found: list[Finding] = []
    try:
        for finding in audit(config, asked):
            print(finding.line(), flush=True)
            found.append(finding)
    except Exception as error:  # what was found before is told in any case
        said = "; ".join(map(str, error.args)) if isinstance(error, UserError) else place(error)
        _conclude(found, asked.json, stopped=said)
        raise
    _conclude(found, asked.json)
    return ALARM if findings.alarms(found) else 0


def _conclude(found: Sequence[Finding], path: Path | None, *, stopped: str = "") -> None:
    """Writes the document, if one is asked for, and prints how many checks there were."""
    if path is not None:
        findings.write(found, path, stopped)
        print(f"written  {path}")
    number, asked = findings.alarms(found), sum(f.verdict != "left out" for f in found)
    parts = [f"{asked} checks", f"{number} alarm{'s' * (number != 1)}"]
    parts += [f"{len(found) - asked} left out"] if asked < len(found) else []
    print(", ".join(parts) + "; stopped before the last check" * bool(stopped), flush=True)


def parse(args: Sequence[str]) -> Asked:
    """Arguments -> Asked. Raises ConfigError with what is wrong."""
    own, others = dict.fromkeys(OWN, ""), []
    for arg in args:
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in OWN:
            others.append(arg)
        elif name == "json" and not value:
            raise ConfigError("--json: needs a value, --json=FILE")
        elif name == "no_data" and equals:
            raise ConfigError("--no_data: takes no value")
        else:
            own[name] = value or "true"
    flags = configs.parse(others)
    named = any(arg.startswith("--workdir") for arg in others)
    given = [name for name in ("mode", "on") if any(a.startswith(f"--{name}") for a in others)]
    if given:
        raise ConfigError(f"--{given[0]}: goes with m4.main; see --help")
    if flags.config is None and flags.config_json is None and not named:
        raise ConfigError("--config: is missing, --config=FILE[:VARIANT]")
    if named and own["no_data"]:
        raise ConfigError("--no_data: cannot be given together with --workdir")
    if named and flags.workdir is not None and not flags.workdir.is_dir():
        raise ConfigError(
            f"--workdir={flags.workdir}: no such folder; m4.main --mode=train makes it"
        )
    json = local.folder(own["json"], "--json") if own["json"] else None
    if json is not None and json.is_dir():
        raise ConfigError(f"--json={json}: is a folder")
    return Asked(flags, flags.workdir if named else None, json, not own["no_data"])


def audit(config: ml_collections.ConfigDict, asked: Asked) -> Iterator[Finding]:
    """Every finding, as soon as it is there."""
    if not asked.data:
        return examine.invented(config, preflight.schema(config))
    return examine.everything(config, asked.workdir)
