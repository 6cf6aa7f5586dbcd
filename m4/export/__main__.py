"""`python -m m4.export --workdir=DIR --out=FILE`; see `--help`."""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("export.__main__")

from collections.abc import Sequence
from pathlib import Path

from m4 import local
from m4.errors import ConfigError
from m4.export import bundle, lowering

USAGE = f"""usage: python -m m4.export --workdir=DIR --out=FILE [--platforms=cpu,cuda,tpu]

Writes the best parameters of a run into one file that runs with JAX and NumPy alone:
`python FILE --help`. It holds the prediction as StableHLO for any number of rows, what it takes to
go from raw values to its inputs, cuts chosen in validation, thresholds of prediction sets (of a run
with data.calibration), and a card. No row of a patient is in it; see docs/deployment.md.

  --workdir     a trained run, an ensemble or a cross-validation, whose members are averaged
  --out         the file, 'model.m4' say
  --platforms   what it is to run on (default: {",".join(lowering.PLATFORMS)})
  --trust_code  run code outside m4 that the work directory names
  --debug       print tracebacks, which may quote data

exit codes: 0 done, 1 bug, 2 usage or configuration, or a model whose predictions are no function of
            one row, 3 data, 4 no usable checkpoint, 6 could not save, 75 told to stop"""
OPTIONS, SWITCHES = ("workdir", "out", "platforms"), ("trust_code", "help")
KNOWN = ("cpu", "cuda", "rocm", "tpu")


def main(args: Sequence[str]) -> int:
    """Writes a bundle and returns the exit code."""
    return cli.guard(run, args)


def run(args: Sequence[str]) -> int:
    """Writes a bundle. Raises a UserError if it can't."""
    found = parse(args)
    if "help" in found:
        print(USAGE)
        return 0
    if missing := [
        f"--{name}: is missing; see --help" for name in OPTIONS[:2] if not found.get(name)
    ]:
        raise ConfigError(*missing)
    platforms = tuple(found.get("platforms", ",".join(lowering.PLATFORMS)).split(","))
    if wrong := [name for name in platforms if name not in KNOWN]:
        raise ConfigError(f"--platforms={','.join(wrong)}: must be of {', '.join(KNOWN)}")
    local.require_variables()
    folder: Path = local.folder(found["workdir"], "--workdir")
    trusted = "trust_code" in found
    bundle.write(folder, found["out"], platforms=platforms, trust_code=trusted, say=_say)
    return 0


def parse(args: Sequence[str]) -> dict[str, str]:
    """Flags and their values. Raises ConfigError with what is wrong."""
    found: dict[str, str] = {}
    problems, queue = [], ["--help" if arg == "-h" else arg for arg in args]
    while queue:
        name, equals, value = queue.pop(0).removeprefix("--").partition("=")
        if name in OPTIONS and not equals and queue and not queue[0].startswith("--"):
            equals, value = "=", queue.pop(0)
        if name not in (*OPTIONS, *SWITCHES):
            problems.append(f"{name}: unknown; see --help")
        elif name in found:
            problems.append(f"--{name}: is given twice")
        elif (name in OPTIONS) != bool(equals and value):
            problems.append(f"--{name}: {'needs a value' if name in OPTIONS else 'takes none'}")
        else:
            found[name] = value
    if problems:
        raise ConfigError(*problems)
    return found


def _say(line: str) -> None:
    print(line, flush=True)
