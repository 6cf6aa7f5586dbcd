"""What results say in words and tables: names, numbers, verdicts, warnings, the terminal table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m4.errors import printable
from m4.eval.holm import adjusted
from m4.specs import LOWER_IS_BETTER

FEW_PATIENTS, FEW_EVENTS = 500, 50
BLEND = "blend"  # see m4.eval.blend
SHORT = 10  # characters of a row's name on the terminal
MANY_LABELS = "references that cost much where labels are many"
_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "min_se_ppv": "min(Se, PPV)",
    "f1": "F1",
    "f1_val": "F1*",
    "brier": "Brier",
    "ece": "ECE",
    "calibration_error": "cal. error",
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "spearman": "Spearman",
    "c_index": "C",
    "c_index_ipcw": "C (IPCW)",
}

_REFERENCES = {
    "boosting": "gradient boosting",
    "default boosting": "default gradient boosting",
    "late": "late fusion",
    "presence": "presence alone",
    "blend": "blend with boosting",
}


def reference_name(name: str, kind: str) -> str:
    """What a reference is for a task of this kind: 'linear' -> 'ridge regression'."""
    if name == "linear":
        return "ridge regression" if kind == "regression" else "logistic regression"
    return _REFERENCES.get(name, name)


def metric_name(metric: str) -> str:
    """'auroc_macro' -> 'macro AUROC'."""
    for average in ("macro", "micro"):
        if metric.endswith(f"_{average}"):
            return f"{average} {_NAMES[metric.removesuffix(f'_{average}')]}"
    return _NAMES.get(metric, metric)


def arrow(metric: str) -> str:
    """Whether more or less is better."""
    return "↓" if metric in LOWER_IS_BETTER else "↑"


def text(value: float | None, *, sign: bool = False) -> str:
    """Three decimals below ten, three digits above, a dash for nothing."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 10 else (1 if abs(value) < 1000 else 0)
    value = round(value, digits) + 0.0  # no negative zero
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """'19.2 %'."""
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:.1f} %".replace("-", "−")


def interval(estimate: Mapping[str, Any], *, sign: bool = False) -> str:
    """'0.81 to 0.87', empty without an interval."""
    if estimate["low"] is None:
        return ""
    return f"{text(estimate['low'], sign=sign)} to {text(estimate['high'], sign=sign)}"


def cell(count: int | None, smallest: int) -> str:
    """A patient count, with small cells as '<10'."""
    return f"{count:,}" if count is not None else f"<{smallest}"


def scores(results: Mapping[str, Any], task: str, subset: str = "full") -> dict[str, Any]:
    """Metrics of one task under one subset."""
    for row in results["scores"]:
        if row["task"] == task and row["subset"] == subset:
            return row["metrics"]
    return {}


def verdicts(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per task and reference whether the model clears it on the task's primary metric.

    {task, reference, strongest, clears, mood, text}. Clearing means that the whole paired interval
    lies on the good side, and that this holds with all these comparisons taken into account (Holm,
    5 %). With few patients or outcomes nothing is judged: mood 'unknown'. No clear difference is
    'level'. The blend is no reference: the model is half of it.
    """
    out = []
    holm = _holm(results)
    for name, by_task in _fitted(results).items():
        for task, found in by_task.items():
            metric = results["tasks"][task]["primary"]
            delta = found["delta"].get(metric)
            if delta is None or delta["value"] is None:
                continue
            flip = -1 if metric in LOWER_IS_BETTER else 1
            ends = [flip * end for end in (delta["low"], delta["high"]) if end is not None] or [0]
            sure = holm.get((task, name), 0.0) <= 0.05
            mood = (
                "good" if min(ends) > 0 and sure else "bad" if max(ends) < 0 and sure else "level"
            )
            says = {"good": "is better than", "bad": "is worse than", "level": "does not clear"}[
                mood
            ]
            if not enough(results, task):
                mood, says = "unknown", "is not judged against"
            reference = reference_name(name, results["tasks"][task]["kind"])
            numbers = f"{text(delta['value'], sign=True)} [{interval(delta, sign=True)}]"
            line = f"{task}: the model {says} {reference} ({metric_name(metric)} {numbers})"
            line += ": not enough data to say" if mood == "unknown" else ""
            own = {"task": task, "reference": name, "clears": mood == "good"}
            own["strongest"] = name == strongest(results, task)
            out.append({**own, "mood": mood, "text": line})
    return out


def strongest(results: Mapping[str, Any], task: str) -> str | None:
    """The reference with the best primary metric on these very rows, None without any.

    It is chosen by what is reported, which flatters it and never the model.
    """
    metric = results["tasks"][task]["primary"]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best, best_value = None, -np.inf
    for name, by_task in _fitted(results).items():
        value = (by_task.get(task, {}).get("metrics", {}).get(metric) or {}).get("value")
        if task in by_task and (best is None or (value is not None and sign * value > best_value)):
            best, best_value = name, -np.inf if value is None else sign * value
    return best


def blends(results: Mapping[str, Any]) -> list[str]:
    """What the blend gains over its parts, a line per task: each with its paired interval."""
    out = []
    for task, found in results["references"].get(BLEND, {}).items():
        metric = results["tasks"][task]["primary"]
        against, own = found.get("against", {}).get("boosting", {}).get(metric), None
        if (delta := found["delta"].get(metric)) and delta["value"] is not None:
            low, high = (None if delta[e] is None else -delta[e] for e in ("high", "low"))
            own = {"value": -delta["value"], "low": low, "high": high}
        if not own or not against or against["value"] is None:
            continue
        value = found["metrics"][metric]
        said = [
            f"{text(e['value'], sign=True)} [{interval(e, sign=True)}] to {part}"
            for e, part in ((against, "boosting"), (own, "the model"))
        ]
        head = f"{task}: the mean of model and boosting has {metric_name(metric)} "
        out.append(f"{head}{text(value['value'])}, {said[0]} and {said[1]}")
    return out


def _fitted(results: Mapping[str, Any]) -> dict[str, Any]:
    """References that owe nothing to the model."""
    return {name: found for name, found in results["references"].items() if name != BLEND}


def enough(results: Mapping[str, Any], task: str) -> bool:
    """Whether a task has the patients and outcomes without which nothing is judged."""
    card, patients = results["tasks"][task], results.get("patients", FEW_PATIENTS)
    if patients is None or patients < FEW_PATIENTS:
        return False
    events = card.get("events", FEW_EVENTS)
    return card["kind"] == "regression" or (events is not None and events >= FEW_EVENTS)


def _holm(results: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Holm's adjusted p over the references of all tasks: (task, reference) -> p."""
    known = {}
    for name, by_task in _fitted(results).items():
        for task, found in by_task.items():
            p = (found["delta"].get(results["tasks"][task]["primary"]) or {}).get("p")
            if p is not None:
                known[task, name] = p
    return dict(zip(known, adjusted(np.array([*known.values()])).tolist(), strict=True))


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a number."""
    smallest, out = results["min_patients"], []
    patients = results["patients"]
    if patients is None or patients < FEW_PATIENTS:
        out.append(
            f"{cell(patients, smallest)} patients prove nothing: treat every interval as a rough "
            "guess and do not rank methods by these numbers."
        )
    for task, card in results["tasks"].items():
        events = card["events"]
        if card["kind"] != "regression" and (events is None or events < FEW_EVENTS):
            out.append(
                f"{task}: {cell(events, smallest)} patients {with_outcome(card)} prove nothing: "
                "treat the interval as a rough guess."
            )
    return out


def with_outcome(card: Mapping[str, Any]) -> str:
    """Whom the events of a task are; where they are not told, few may also be the others."""
    of = "with the outcome" if card["kind"] == "binary" else "with the rarest outcome"
    return f"{of}, or without it," if card["events"] is None else of


def print_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """The task table, verdicts and warnings on the terminal."""
    console = console or Console(markup=False)
    patients, draws = results["patients"], results["bootstrap"]["draws"]
    console.print(
        f"{results['split']} split, {cell(patients, results['min_patients'])} patients; below each "
        f"number its 95 % interval ({draws} patient bootstrap draws)",
        style="bold",
    )
    if results.get("missing"):
        line = f"made to lack more: {lacking(results['missing'])}"
        console.print(Text(printable(line)), style="bold")
    for columns, tasks in grouped(results):
        if "min_se_ppv" in columns:  # 80 characters hold five
            columns = [metric for metric in columns if not metric.startswith("f1")]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
        table.add_column("task")
        for metric in columns:
            table.add_column(f"{metric_name(metric)} {arrow(metric)}", justify="right")
        for task in tasks:
            _add(table, task, scores(results, task), columns, "bold")
            for name, by_task in results["references"].items():
                if task in by_task:
                    label = reference_name(name, results["tasks"][task]["kind"])
                    label = label.removesuffix(" regression").removeprefix("gradient ")
                    label = name.removesuffix(" boosting") if len(label) > SHORT else label
                    _add(table, f" {label}", by_task[task]["metrics"], columns, "")
        console.print(table, "")
    for verdict in (v for v in verdicts(results) if v["strongest"]):
        style = "green" if verdict["clears"] else "yellow"
        console.print(Text(printable(verdict["text"])), style=style)
    for line in [*blends(results), *left_out(results)]:
        console.print(Text(printable(line)))
    for line in warnings(results):
        console.print(Text(printable(f"warning: {line}")), style="yellow")


def left_out(results: Mapping[str, Any]) -> list[str]:
    """References that were not fitted because there are many labels, in words; [] if all were."""
    if not (names := results.get("references_left_out")):
        return []
    said = ", ".join(names)
    return [f"not fitted, of {MANY_LABELS}: {said} (eval.baselines={','.join(names)} would)"]


def lacking(missing: Mapping[str, Any]) -> str:
    """What `eval.missing` took from the split, in words."""
    words = (f"{name} {value}" for name, value in missing.items() if name != "kind")
    return f"{missing['kind']} ({', '.join(words)})"


def grouped(results: Mapping[str, Any]) -> list[tuple[list[str], list[str]]]:
    """Tasks that share their headline metrics: [(metrics, tasks)]."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, card in results["tasks"].items():
        groups.setdefault(tuple(card["headline"]), []).append(task)
    return [(list(metrics), tasks) for metrics, tasks in groups.items()]


def _add(table: Table, label: str, metrics: Mapping[str, Any], columns, style: str) -> None:
    cells = [Text(printable(label), style)]
    for name in columns:
        found = Text("")
        if name in metrics:
            found.append(text(metrics[name]["value"]), style)
            found.append("\n" + interval(metrics[name]).replace(" to ", "–"), "dim")
        cells.append(found)
    table.add_row(*cells)
