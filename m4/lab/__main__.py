"""`python -m m4.lab --config=configs/lab_gates.py --out=runs/lab`; see `--help`."""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("lab.__main__")

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from m4 import local, virtual
from m4.errors import ConfigError, DataError, place, printable
from m4.lab import compare, judged, pages, runner, side_by_side, sizes, study, theory
from m4.lab.documents import read_plan, rows
from m4.run import preflight, workspace

USAGE = """usage: python -m m4.lab --config=FILE[:VARIANT] --out=DIR [--shard=I/N] [--plan]
       python -m m4.lab --out=DIR --report
       python -m m4.lab theory --config=FILE[:VARIANT] --out=DIR
       m4-moe compare RUN RUN [RUN ...] [--metric=TASK/METRIC] [--margin=X --reason=WHY]
                      [--page=FILE]              (also: python -m m4.lab compare)

  --config   a study: base, axes, arms, seeds, margin (docs/lab.md)
  --out      rows and report; what is there already is not run again
  --shard    the I-th of N parts, I from 0: in a Slurm array, an indexed Job, a second terminal
  --plan     print arms, sizes and what cannot be run; run nothing
  --report   tables and pictures of what is there, of any shards
  theory     rates of estimation of gates by maximum likelihood
  compare    finished runs of m4.main, paired by seeds and patients; the first is the reference
  --page     where the comparison is written as a page (default: compare.html beside the first run)

exit codes: 0 done, 1 bug, 2 usage or configuration, 3 data, 5 diverged, 6 could not save,
            75 told to stop, the same command goes on;
            9 some arms were not run: the report says which, the same command tries them again"""
UNFINISHED = 9


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    virtual.make_room(os.environ)
    return cli.guard(run, args, again="; the same command goes on")


def run(args: Sequence[str]) -> int:
    """Runs one command. Raises a UserError if it can't."""
    if {"--help", "-h"} & {*args}:
        print(USAGE)
        return 0
    parser = _Parser("python -m m4.lab", add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?", default="")
    parser.add_argument("runs", nargs="*", type=Path)
    for name in ("config", "out", "shard", "metric", "reason", "page"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--margin", type=float)
    for name in ("plan", "report"):
        parser.add_argument(f"--{name}", action="store_true")
    found = parser.parse_args(args)
    if found.command == "compare":
        return _compare(found)
    if found.command not in ("", "theory"):
        raise ConfigError(f"{found.command}: must be theory, compare or nothing; see --help")
    if not found.out and not found.plan:
        raise ConfigError("--out: is missing")
    out = local.folder(found.out, "--out", made=True)
    if found.command == "theory":
        return _theory(found.config, out)
    if found.report and not found.config:
        return _report(out, [])
    return _study(found, out)


def _study(found: argparse.Namespace, out: Path) -> int:
    shard = parts(found.shard)
    asked = study.load(found.config)
    asked.seconds()
    arms, left = study.arms(asked)
    arms = sizes.matched(asked, arms)
    for arm in arms:
        if arm.reference:  # what the base cannot do no arm can
            preflight.require(arm.at(asked.seeds[0]), None, files=not found.plan)
    if found.plan:
        print(*sizes.table(arms), *(f"not run  {k}: {v}" for k, v in left.items()), sep="\n")
        return 0
    with _as_written(out):
        runner.begin(out, asked, arms, left)
    workspace.use_cache(out)
    notes = [] if found.report else runner.run(asked, arms, out, shard=shard)
    print(*(f"not run  {note}" for note in notes), sep="\n", end="\n" if notes else "")
    _report(out, notes)
    return UNFINISHED if notes else 0


@contextlib.contextmanager
def _as_written(out: Path) -> Iterator[None]:
    """Documents of a folder that are sealed and of other types are its fault, no bug."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{out}: is not as the lab writes it ({place(error)})") from error


def _report(out: Path, notes: Sequence[str]) -> int:
    plan = read_plan(out)
    with _as_written(out):
        found = rows(out)
        said = judged.every(plan, found, out)
        lines = judged.lines(plan, found, said)
        pages_of = pages.texts(out, plan, found, said, notes)
    print(*lines, sep="\n")
    for path in pages.write(out, pages_of):
        print(f"report   {path}", flush=True)
    return 0


def _theory(config: str, out: Path) -> int:
    print(*theory.write(theory.run(theory.load(config)), out), sep="\n")
    return 0


def _compare(found: argparse.Namespace) -> int:
    runs = [folder.expanduser() for folder in found.runs]
    beside = runs[0].parent / "compare.html" if runs else Path("compare.html")
    page = local.folder(found.page, "--page") if found.page else beside
    told = compare.run(runs, metric=found.metric, margin=found.margin, reason=found.reason)
    page = side_by_side.write(told, page)
    print(*map(printable, (*told.lines(), f"page     {page}")), sep="\n")
    return 0


def parts(text: str) -> tuple[int, int]:
    """'3/64' -> (3, 64). Raises ConfigError for what is no part."""
    index, _, count = (text or "0/1").partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--shard={text}: must be I/N with I from 0 to N - 1, as 3/64")
    return int(index), int(count)
