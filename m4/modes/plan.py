"""`--mode=plan --topology=v5p:8x8x16`: what a run would cost there. No data, no accelerator.

The step is compiled by the product's own functions for described chips in a process of its own
(`m4.plan.facts`). Exit code 0; 1 if the compiler's figures are more than 10 % from the closed
form; 2 if it does not fit, with changes that do.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4 import atomic, local, placement, sharding
from m4 import config as configs
from m4.config import Flags
from m4.errors import ConfigError, UserError
from m4.plan import facts as plans
from m4.plan import fits, printed, topology


class Disagreement(UserError):
    """The compiler and the closed form tell different things."""

    exit_code = 1
    kind = "plan"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found: facts if it fits, else why not and what would help."""

    config: ml_collections.ConfigDict
    chips: topology.Topology
    facts: plans.Facts | None
    refusal: str | None = None
    remedies: Sequence[fits.Remedy] = ()


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Plans, prints, and writes JSON where asked to. See `m4.main`."""
    options = flags.options
    if "topology" not in options:
        kinds = ", ".join(topology.CHIPS)
        raise ConfigError(f"--topology: is missing, KIND:SIZE with a kind of {kinds}")
    target = local.folder(options["json"], "--json") if "json" in options else None
    chips = topology.parse(options["topology"])
    config = with_rows(config, chips, options.get("rows"))
    print(f"compiling for {chips.name} ...", flush=True)
    found = make(config, chips)
    wrong = fits.disagreements(found.facts, chips) if found.facts else []
    if target:
        atomic.write(target, json.dumps(document(found, wrong), indent=1) + "\n")
    if found.facts:
        save, across = config.train.save_every, config.mesh.across
        print(*printed.lines(found.facts, chips, save, across), sep="\n", flush=True)
    if found.refusal:
        helps = [f"fits with {r.change}: {fits.gigabytes(r.peak_bytes)}" for r in found.remedies]
        raise ConfigError(found.refusal, *(helps or ["no change that was tried makes it fit"]))
    if wrong:
        raise Disagreement(*wrong)


def make(config: ml_collections.ConfigDict, chips: topology.Topology) -> Plan:
    """Facts of a configuration and, where it does not fit, what helps. Raises ConfigError."""
    found = plans.ask(config, chips)
    refusal = fits.too_large(found, chips)
    helps = fits.remedies(config, chips) if refusal else []
    return Plan(config, chips, None if isinstance(found, str) else found, refusal, helps)


def document(plan: Plan, wrong: Sequence[str] = ()) -> dict[str, Any]:
    """A plan as plain data."""
    helps = [dataclasses.asdict(r) for r in plan.remedies]
    more = {"refusal": plan.refusal, "remedies": helps, "disagreements": [*wrong]}
    save, across = plan.config.train.save_every, plan.config.mesh.across
    return printed.document(plan.facts, plan.chips, save, across, **more)


def with_rows(
    config: ml_collections.ConfigDict, chips: topology.Topology, rows: str | None
) -> ml_collections.ConfigDict:
    """The configuration with `rows` on every share of a batch, as many as the chips allow."""
    if rows is None:
        return config
    if not rows.isdecimal() or int(rows) < 1:
        raise ConfigError(f"--rows={rows}: must be a number of rows on each chip, from 1 on")
    asked = {axis: config.mesh[axis] for axis in sharding.AXES}
    sizes = placement.sizes(asked, chips.virtual)
    shares = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    number = str(int(rows) * shares)
    changes = {f"{part}.batch_size": number for part in ("train", "eval")}
    return configs.check(config.to_dict(), changes, "--rows")
