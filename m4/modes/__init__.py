"""What `--mode` can be: one module per mode, imported when asked for.

Everything that can be refused without JAX is refused here, before a mode is imported.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path

import ml_collections

from m4.config import Flags
from m4.errors import ConfigError, Preempted, UserError
from m4.modes import raw


def run(config: ml_collections.ConfigDict | None, flags: Flags) -> None:
    """Runs the mode that `flags` name. Raises a UserError if it can't."""
    if flags.workdir is None:
        raise ConfigError("--workdir: is missing")
    if flags.mode not in ("train", "crossval", "check") and not flags.workdir.is_dir():
        raise ConfigError(f"--workdir={flags.workdir}: no such folder; --mode=train makes it")
    if config is not None and not (flags.mode == "check" and flags.config is None):
        raw.require(config, flags.config)
    mode = importlib.import_module(f"m4.modes.{flags.mode}")
    if not os.environ.get("M4_COORDINATOR"):
        mode.run(config, Path(flags.workdir), flags)
        return
    from m4.train import processes

    processes.join()
    try:
        mode.run(config, Path(flags.workdir), flags)
    except Preempted:
        raise  # of all processes alike
    except Exception as error:
        # Leaves without the others, who may be waiting for this process for ever: its going
        # is what ends them.
        known = isinstance(error, UserError)
        print(*error.lines(), sep="\n", file=sys.stderr) if known else traceback.print_exc()
        sys.stderr.flush()
        os._exit(error.exit_code if known else 1)
