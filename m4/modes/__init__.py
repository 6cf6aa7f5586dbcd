"""What `--mode` can be: one module per mode, imported when asked for.

What can be refused without data is refused here, before a mode is imported.
"""

import importlib
import os
from pathlib import Path

import ml_collections

from m4.config import Flags
from m4.data import leave_out
from m4.errors import ConfigError
from m4.remote import places
from m4.train import trackers, workdir

# Modes that keep checkpoints.
SAVING = ("train", "crossval", "ensemble", "refit", "sweep", "tim", "interplay")
TESTING = ("train", "check", "ensemble")  # modes with one test split
ON_TRAINED = ("eval", "predict", "stress")  # modes that need nothing but what a run has built
ONE_BY_ONE = ("scale", "sweep")  # modes whose points, not they themselves, join other processes
ELSEWHERE = ("plan", "scale", "report")  # modes that need not the devices of the mesh


def require(config: ml_collections.ConfigDict | None, flags: Flags) -> None:
    """Raises a UserError for what the mode that `flags` name will not do."""
    if flags.workdir is None:
        raise ConfigError("--workdir: is missing")
    without_data = flags.mode == "check" and not (flags.config or flags.config_json)
    needed = flags.mode in ("eval", "predict", "report", "stress", "refit") or without_data
    if needed and not os.path.isdir(flags.workdir):
        raise ConfigError(f"--workdir={flags.workdir}: no such folder; --mode=train makes it")
    if needed and places.url_of(flags.workdir) and not (flags.workdir / "config.json").exists():
        raise ConfigError(f"--workdir={flags.workdir}: holds no run; --mode=train makes it")
    if flags.mode in SAVING:
        workdir.require_name(flags.workdir)
        trackers.require(config.train.writers if config is not None else ())
    if config is not None and flags.on is not None:
        from m4.run import trained

        trained.require(config, flags.workdir, flags.on)
    elif config is not None and not without_data:
        from m4.run import preflight

        alone = not os.environ.get(
            "M4_COORDINATOR"
        )  # devices of several are known once they joined
        here = alone and flags.mode not in ELSEWHERE
        if flags.mode in TESTING:
            leave_out.named(config.data.leave_out)
        files = flags.mode != "plan"
        if flags.mode not in ON_TRAINED or flags.config or flags.config_json:
            preflight.require(config, flags.config, files=files, mesh=here)
            return
        from m4.run import trained

        with trained.told_where(config, flags.workdir):
            files = trained.found(config, flags.workdir) is None
            spec = trained.schema(config, flags.workdir)
            preflight.require(config, None, files=files, mesh=here, spec=spec)


def run(config: ml_collections.ConfigDict | None, flags: Flags) -> None:
    """Runs the mode that `flags` name; `require` comes first. Raises a UserError if it can't."""
    name = flags.mode if flags.on is None else "new"
    mode = importlib.import_module(f"m4.modes.{name}")
    if os.environ.get("M4_COORDINATOR") and flags.mode not in ONE_BY_ONE:
        from m4.run import agreement
        from m4.train import processes

        processes.join(agreement.at_start(config, flags), saves=flags.mode in SAVING)
    mode.run(config, Path(flags.workdir or ""), flags)
