"""What the report shows of a run: its configuration, training and cohort, as template context."""

from collections.abc import Mapping, Sequence
from typing import Any

from m4 import cells
from m4.eval.report import plots, tables
from m4.specs import LOWER_IS_BETTER

MAX_LINES = 8
MAX_PATTERNS = 20


def title(config: Mapping[str, Any], data: Mapping[str, Any] | None) -> str:
    """'fusemoe on physionet2012'."""
    method = config.get("method", {}).get("name", "unknown method")
    name = config.get("data", {}).get("name") or (data or {}).get("name", "unknown data")
    return f"{method} on {name}"


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The configuration as dotted names; folders are left out, they tell only about a machine."""
    rows = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif name not in ("data.raw_dir", "data.dir"):
            rows.append((name, json_text(value)))
    return rows


def json_text(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(json_text, value))
    return str(value)


def training(log: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Learning curves out of metrics.jsonl, and the step that was selected."""
    if not log:
        return None
    select = config.get("train", {}).get("select")
    panels = [
        {"title": "training loss", "lines": _lines(log, "train/loss", exact="total")},
        {"title": "loss by task", "lines": _lines(log, "train/task/")},
        *_validation(log, select),
        {"title": "router entropy (nats)", "lines": _layers(log, "/entropy")},
        {"title": "expert load CV", "lines": _layers(log, "/load_cv")},
        {"title": "dropped assignments", "lines": _layers(log, "/dropped")},
        {"title": "examples per second", "lines": _lines(log, "time/examples_per_s", exact="ex/s")},
    ]
    panels = [panel for panel in panels if panel["lines"]]
    best = _best(log, select)
    waits = [row["time/input_wait"] for row in log if row.get("time/input_wait") is not None]
    return {
        "svg": plots.curves(panels, mark=best and best[0], alt="learning curves")
        if panels
        else None,
        "select": select,
        "best": best,
        "steps": log[-1]["step"],
        "wait": sum(waits) / len(waits) if waits else None,
        "skipped": sum(row.get("train/skipped") or 0 for row in log),
    }


def _series(log, key: str):
    found = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    return tuple(zip(*found, strict=True)) if found else None


def _lines(log, prefix: str, *, exact: str | None = None) -> dict[str, tuple]:
    keys = [prefix] if exact else sorted({k for row in log for k in row if k.startswith(prefix)})
    found = {exact or key.removeprefix(prefix): _series(log, key) for key in keys}
    return {name: series for name, series in list(found.items())[:MAX_LINES] if series}


def _layers(log, suffix: str) -> dict[str, tuple]:
    keys = sorted(
        {k for row in log for k in row if k.startswith("train/moe/") and k.endswith(suffix)}
    )
    found = {k.removeprefix("train/moe/").removesuffix(suffix): _series(log, k) for k in keys}
    lines = {name: series for name, series in list(found.items())[:MAX_LINES] if series}
    constant = all(value == 0 for _, values in lines.values() for value in values)
    return {} if suffix == "/dropped" and constant else lines


def _validation(log, select: str | None) -> list[dict[str, Any]]:
    """One panel per metric that selects or is primary somewhere, one line per task."""
    keys = sorted({k for row in log for k in row if k.startswith("val/")})
    panels: dict[str, dict[str, tuple]] = {}
    for key in keys:
        task, _, metric = key.removeprefix("val/").rpartition("/")
        chosen = f"{task}/{metric}" == select
        if chosen or metric in ("auroc", "auprc", "auroc_macro", "mae"):
            series = _series(log, key)
            if series:
                panels.setdefault(metric, {})[task] = series
    return [
        {
            "title": f"validation {tables.metric_name(metric)}"
            + (f", {next(iter(lines))}" if len(lines) == 1 else ""),
            "lines": lines,
        }
        for metric, lines in panels.items()
    ]


def _best(log, select: str | None) -> tuple[int, float] | None:
    series = _series(log, f"val/{select}")
    if not select or not series:
        return None
    lower = select.rpartition("/")[2] in LOWER_IS_BETTER
    pairs = list(zip(*series, strict=True))
    return min(pairs, key=lambda pair: pair[1] if lower else -pair[1])


def cohort(data: Mapping[str, Any] | None, smallest: int) -> dict[str, Any] | None:
    """Flow, splits, presence and labels out of data.json, small cells suppressed."""
    if not data:
        return None
    labels = {t["name"]: t for t in data.get("schema", {}).get("tasks", [])}
    splits = data.get("splits", {})
    return {
        "name": data.get("name"),
        "version": data.get("version"),
        "fingerprint": data.get("fingerprint"),
        "seed": data.get("seed"),
        "licence": data.get("licence"),
        "flow": _flow(data.get("flow", []), smallest),
        "splits": [
            {
                "name": name,
                "rows": cells.count(split["rows"], smallest),
                "patients": cells.count(split["patients"], smallest),
                "present": {
                    modality: _share(count, split["rows"], smallest)
                    for modality, count in split["present"].items()
                },
                "labels": {
                    task: _label(labels[task], found, smallest)
                    for task, found in split["labels"].items()
                    if task in labels
                },
            }
            for name, split in splits.items()
        ],
        "sources": len(data.get("sources", {})),
        "presence": _presence(data, smallest),
    }


def _presence(data: Mapping[str, Any], smallest: int) -> str | None:
    """A picture of the combinations of modalities over all splits; rare ones are left out."""
    names = [m["name"] for m in data.get("schema", {}).get("modalities", [])]
    total: dict[int, int] = {}
    for split in data.get("splits", {}).values():
        for pattern, count in split.get("patterns", {}).items():
            total[int(pattern)] = total.get(int(pattern), 0) + count
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        {"keep": [name for m, name in enumerate(names) if pattern >> m & 1], "count": count}
        for pattern, count in ranked[:MAX_PATTERNS]
        if count >= smallest
    ]
    return plots.presence(rows, names, alt="combinations of modalities") if rows else None


def _flow(flow: Sequence[Sequence], smallest: int) -> list[tuple[str, str]]:
    """Steps of the cohort; a step that removes few is not given exactly."""
    rows, before = [], None
    for step, count in flow:
        near = before is not None and 0 < abs(count - before) < smallest
        if near:
            rows.append((step, f"within {smallest} of the line above"))
            continue
        rows.append((step, cells.count(count, smallest)))
        before = count
    return rows


def _share(count: int, total: int, smallest: int) -> str:
    return cells.share(count, total, smallest, digits=0, unknown="–")


def _label(task: Mapping[str, Any], found: Mapping[str, Any], smallest: int) -> str:
    """Prevalence or mean of a task's labels in a split."""
    known = _flat(found["known"])
    mean = _flat(found["mean"])
    if not known or max(known) < smallest:
        return "–"
    if task["kind"] == "multiclass":
        return f"{task['dim']} classes"
    if task["kind"] == "regression":
        return f"mean {tables.text(mean[0])}"
    if task["kind"] == "survival":  # of time and event
        known, mean = known[1:], mean[1:]
    shown = [_share(round(n * m), int(n), smallest) for n, m in zip(known, mean, strict=True) if n]
    if len(shown) == 1:
        return shown[0]
    numbers = sorted(float(s.rstrip("%")) for s in shown if s.endswith("%"))
    low = "rare" if "rare" in shown or not numbers else f"{numbers[0]:.0f}%"
    return f"{low} to {numbers[-1]:.0f}%" if numbers else low


def _flat(value: Any) -> list[float]:
    if isinstance(value, list):
        return [x for item in value for x in _flat(item)]
    return [value]
