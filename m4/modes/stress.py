"""`--mode=stress`: one checkpoint on a test split that lacks more, or is measured otherwise.

    python -m m4.main --mode=stress --workdir=runs/mimic
    python -m m4.main --mode=stress --workdir=runs/mimic --kinds=mnar,drift --rates=0.2,0.5

Kinds of missingness (`m4.data.missing`), at the same rates for all modalities:
- mcar: at random; mar: more where a modality that stays is high; mnar: more where its own values
  are high; blocks: neighbours in the schema lost together; gaps: a run of that share of every
  series' and note's positions.
Kinds of measurement (`m4.data.disturb`), by as many standard deviations: drift, noise.

One compiled program predicts all of it, that of `--mode=eval`. Writes `stress.json`
(`m4.eval.stress`) and its section of the report.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from m4 import seal
from m4.config import Flags
from m4.data import disturb, missing
from m4.data.store import Store
from m4.errors import ConfigError
from m4.eval import stress
from m4.eval.report import words
from m4.modes import eval as eval_mode
from m4.modes import report
from m4.run import beside, preflight
from m4.run.setup import Setup, context
from m4.run.workspace import open_split, owned
from m4.specs import DataSpec
from m4.train import processes

SPLIT, FILE = "test", "stress.json"
KINDS = (*missing.KINDS, *disturb.KINDS)
RATES = (0.1, 0.3, 0.5, 0.7)


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Predicts the split under every condition. See `m4.main`."""
    kinds, rates = asked(flags)
    if problems := preflight.unfollowed(config, "--mode=stress", ["eval.missing"]):
        raise ConfigError(*problems)
    with owned(folder):
        setup, predict = eval_mode.restore(config, folder)
        with context(setup.mesh):
            document = _conditions(config, setup, predict, kinds, rates)
        if processes.first():
            document["parameters"] = beside.parameters(folder)
            seal.write(folder, FILE, json.dumps(document, indent=1, allow_nan=False) + "\n")
            print(*lines(document), sep="\n")
            if any((folder / "results").glob("*.json")):  # --mode=eval makes the page otherwise
                report.build(folder)


def asked(flags: Flags) -> tuple[list[str], list[float]]:
    """Kinds and rates of the flags, each once. Raises ConfigError for what is none."""
    kinds = [*dict.fromkeys(flags.options.get("kinds", ",".join(KINDS)).split(","))]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"--kinds={unknown[0]}: must be of {', '.join(KINDS)}")
    texts = flags.options.get("rates", ",".join(map(str, RATES))).split(",")
    try:
        rates = sorted({float(text) for text in texts})
    except ValueError:
        rates = [0.0]
    if not all(0 < rate <= 1 for rate in rates):
        raise ConfigError(f"--rates={','.join(texts)}: must be numbers above 0 and at most 1")
    return kinds, rates


def _conditions(config, setup: Setup, predict, kinds: Sequence[str], rates: Sequence[float]):
    """The document of every condition."""
    store = open_split(setup.data, SPLIT, config.eval.batch_size)
    keep = np.ones((1, len(setup.spec.modalities)), bool)
    whole = eval_mode.sweep(config, setup, store, predict, keep)
    made, left_out = [], {}
    for kind in kinds:
        if why := impossible(setup.spec, kind):
            left_out[kind] = why
            continue
        for rate in rates:
            changed = under(store, kind, rate, config.seed)
            try:
                found = eval_mode.sweep(config, setup, changed, predict, keep)
            except ValueError:  # nothing is left of any row
                left_out[f"{kind} {rate:g}"] = "no row has anything left"
                continue
            made.append(stress.Condition(kind, rate, found))
            print(f"stress   {kind} {rate:g}", flush=True)
    options = {"draws": config.eval.bootstrap, "min_patients": config.eval.min_patients}
    return stress.compose(
        whole, made, setup.spec, split=SPLIT, left_out=left_out, seed=config.seed, **options
    )


def impossible(spec: DataSpec, kind: str) -> str | None:
    """Why a kind can't be asked of a schema, or None."""
    if kind in ("mar", "blocks") and len(spec.modalities) < 2:
        return "there is one modality"
    if kind == "blocks" and len(spec.modalities) < 3:
        return "two modalities are one block"
    if kind == "mar" and not any(m.kind in ("series", "table") for m in spec.modalities):
        return "no series or table to depend on"
    if kind == "gaps" and not any(m.timed for m in spec.modalities):
        return "no modality has times"
    if kind == "drift" and all(m.kind in disturb.IDS for m in spec.modalities):
        return "codes and texts do not drift"
    return None


def under(store: Store, kind: str, rate: float, seed: int) -> Store:
    """The split under one condition."""
    if kind in disturb.KINDS:
        return disturb.KINDS[kind](store, rate, seed)
    return missing.incomplete(store, options(store, kind, rate), seed)


def options(store: Store, kind: str, rate: float) -> dict[str, Any]:
    """What `m4.data.missing` takes for a kind at a rate."""
    names = store.spec.modality_names
    found: dict[str, Any] = {"kind": kind, "rate": rate}
    if kind == "mar":  # on the series or table that most rows have; it stays
        able = [m.name for m in store.spec.modalities if m.kind in ("series", "table")]
        present = store.columns([f"{name}/present" for name in able])
        driver = max(able, key=lambda name: present[f"{name}/present"].sum())
        found |= {"driver": driver, "rate": {name: rate for name in names if name != driver}}
    if kind == "blocks":  # of two, the last of three where the number is odd
        cuts = range(0, len(names) - len(names) % 2, 2)
        groups = {f"block {i // 2}": list(names[i : i + 2]) for i in cuts}
        if len(names) % 2:
            groups[f"block {len(groups) - 1}"].append(names[-1])
        found |= {"groups": groups, "rate": dict.fromkeys(groups, rate)}
    if kind == "gaps":
        found |= {"rate": 1.0, "share": rate}
    return found


def lines(document: dict[str, Any]) -> list[str]:
    """The scores by condition, as text."""
    out = []
    for task, card in document["tasks"].items():
        metric = words.metric_name(card["metric"])
        out.append(f"{task}: {metric} {words.text(document['whole'][task]['value'])} as it is")
        for row in document["conditions"]:
            told = row["tasks"][task]
            span = words.interval(told["drop"], sign=True)
            drop = f"drop {words.text(told['drop']['value'], sign=True)}"
            score = words.text(told["score"]["value"])
            out.append(f"  {row['kind']:<7}{row['rate']:<5g}{score}  {drop} {span}".rstrip())
    return out + [f"left out: {kind}: {why}" for kind, why in document["left_out"].items()]
