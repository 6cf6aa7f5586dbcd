"""What the runner must know of inputs and tasks: `schema.json`, in raw units.

How raw values become a model's inputs is told as far as it is the same for everybody: times in
hours since the data set's time zero, the grid of the series and how several values of a cell become
one, plausible ranges, vocabularies. Of a declared data set (MEDS, tables) the definition says it;
of another its module may have `RANGES`, {variable: (low, high)}.
"""

import math
from collections.abc import Mapping
from typing import Any

from m4.data import data_sets, normalise
from m4.data.apply import Trained
from m4.data.sets.declared import parse
from m4.data.sets.declared.definition import Definition
from m4.data.sets.declared.definition import Modality as Declared
from m4.errors import ConfigError
from m4.specs import RAGGED_KINDS, DataSpec, ModalitySpec, TaskSpec

SCALES = ("transform", "mean", "std", "low", "high")  # of a normaliser; not how many values it saw


def modalities(spec: DataSpec, known: Trained, name: str) -> list[dict[str, Any]]:
    """Every modality: shape, variables with units and plausible ranges, window, vocabulary.

    `name` is that of the data set.
    """
    definition = definition_of(known)
    declared = {m.spec.name: m for m in definition.modalities} if definition else {}
    ranges = {} if definition else getattr(data_sets.find(name), "RANGES", {})
    return [
        _modality(m, spec, known, declared.get(m.name), definition, ranges) for m in spec.modalities
    ]


def definition_of(known: Trained) -> Definition | None:
    """The definition that the training data were read by; None for a data set without."""
    options = known.manifest["options"]
    if not isinstance(options.get("modalities"), Mapping):
        return None
    content = {"meds": True, **options}
    try:
        return parse.parse(content, "definition", meds=content.pop("meds"))
    except ConfigError:  # of a version with other rules
        return None


def _modality(
    m: ModalitySpec,
    spec: DataSpec,
    known: Trained,
    declared: Declared | None,
    definition: Definition | None,
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": m.name,
        "title": m.title,
        "kind": m.kind,
        "shape": [*m.shape],
        "dtype": m.dtype,
        "features": _features(m, declared, ranges),
    }
    if m.kind in RAGGED_KINDS:
        out["length"] = m.length
    if m.timed:
        out["window"] = _window(spec, declared, definition)
    if declared is not None and declared.every:
        out["every"] = declared.every
    if m.vocab:
        out["vocab"] = m.vocab
    if m.kind in ("codes", "text"):
        tokens: dict[str, Any] = {}
        if m.name in known.vocabularies:
            tokens["known"] = [*known.vocabularies[m.name]]
        if declared is not None:
            tokens |= {"hashed": declared.vocabulary == "hashed", "distinct": not declared.repeat}
            tokens |= {"split": declared.tokens} if m.kind == "text" else {}
        if tokens:
            out["tokens"] = tokens
    return out


def _features(m: ModalitySpec, declared: Declared | None, ranges) -> list[dict[str, Any]]:
    out = []
    blank = ("",) * len(m.features)
    words = zip(m.features, m.titles or blank, m.units or blank, strict=True)
    own = {f.name: f for f in declared.features} if declared is not None else {}
    for name, title, unit in words:
        feature: dict[str, Any] = {"name": name, "title": title, "unit": unit}
        low, high = ranges.get(name, (None, None))
        if name in own:
            low, high, feature["take"] = own[name].low, own[name].high, own[name].take
        ends = {"low": low, "high": high}
        out.append(feature | {k: v for k, v in ends.items() if v is not None and math.isfinite(v)})
    return out


def _window(
    spec: DataSpec, declared: Declared | None, definition: Definition | None
) -> list[float | None]:
    """First and last hour that a time may have; None where nothing is known to end it."""
    if declared is None or definition is None:
        return [0.0, spec.hours]
    if definition.zero or not all(task.time for task in definition.labelled):
        return [None, None]
    back = declared.lookback
    return [spec.hours - back if math.isfinite(back) else None, spec.hours]


def task(t: TaskSpec) -> dict[str, Any]:
    """A task in words, and how its outputs are called."""
    names = t.labels if len(t.labels) == t.dim else tuple(map(str, range(t.dim)))
    return {
        "name": t.name,
        "title": t.title,
        "kind": t.kind,
        "unit": t.unit,
        "definition": t.definition,
        "outputs": t.dim,
        "labels": [*names],
        "needs": [*t.needs],
        "transform": t.transform,
        "auxiliary": t.auxiliary,
    }


def scaling(spec: DataSpec, known: Trained) -> dict[str, Any]:
    """How a member's training split scales its inputs, and its regression targets, in order."""
    fitted = known.manifest["normalisers"]
    return {
        "inputs": {
            m.name: [{key: f[key] for key in SCALES} for f in fitted[m.name]]
            for m in spec.modalities
            if m.kind in normalise.KINDS
        },
        "targets": [[t.loc, t.scale] for t in spec.tasks if t.kind == "regression"],
    }
