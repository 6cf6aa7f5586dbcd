"""What the report shows of a split's results, as template context.

An `E` is an estimate of `m4.eval.results`: {value, low, high, note?}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from m4.eval.report import plots, tables
from m4.specs import LOWER_IS_BETTER

MAX_LAYERS = 8


def cards(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The glance: each task's primary metric, and whether it clears boosting."""
    verdict = {(v["task"], v["reference"]): v["clears"] for v in tables.verdicts(results)}
    return [
        {
            "task": task,
            "metric": card["primary"],
            "estimate": tables.scores(results, task).get(card["primary"]),
            "clears": verdict.get((task, "boosting")),
            "auxiliary": card["auxiliary"],
        }
        for task, card in results["tasks"].items()
    ]


def task_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of tasks with the same metrics: the model, the references, the paired difference."""
    out = []
    for columns, tasks in tables.grouped(results):
        blocks = []
        for task in tasks:
            rows = [{"label": "m4", "kind": "model", "metrics": tables.scores(results, task)}]
            for name, by_task in results["references"].items():
                if task not in by_task:
                    continue
                label = tables.reference_name(name, results["tasks"][task]["kind"])
                found = by_task[task]
                rows.append({"label": label, "kind": "reference", "metrics": found["metrics"]})
                rows.append({"label": f"m4 − {label}", "kind": "delta", "metrics": found["delta"]})
            blocks.append({"task": task, "card": results["tasks"][task], "rows": rows})
        out.append({"columns": columns, "blocks": blocks, "notes": _notes(blocks)})
    return out


def _notes(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = {}
    for block in blocks:
        for row in block["rows"]:
            for metric, estimate in row["metrics"].items():
                if estimate.get("note"):
                    notes.setdefault((block["task"], row["label"], estimate["note"]), []).append(
                        tables.metric_name(metric)
                    )
    return [f"{t}, {row}, {', '.join(m)}: {note}" for (t, row, note), m in notes.items()]


def subset_plots(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per task the forest plot over subsets, full first, then from good to bad, and its table."""
    info = {subset["label"]: subset for subset in results["subsets"]}
    out = []
    for task, card in results["tasks"].items():
        metric = card["primary"]
        scored = [row for row in results["scores"] if row["task"] == task]
        scored.sort(key=lambda row: _order(row, metric))
        rows = []
        for row in scored:
            estimate, subset = row["metrics"][metric], info[row["subset"]]
            span = tables.interval(estimate)
            words = f"{tables.text(estimate['value'])} ({span})" if span else "no estimate"
            count = tables.cell(row["patients"], results["min_patients"])
            words += f" · n≈{count}" if row["patients"] is not None else f" · n{count}"
            rows.append({**subset, **estimate, "text": words})
        if len(rows) < 2 or all(row["value"] is None for row in rows):
            continue
        name = f"{tables.metric_name(metric)} {tables.arrow(metric)}"
        alt = f"{name} of {task} for every modality subset"
        svg = plots.subsets(rows, results["modalities"], name, alt=alt)
        deltas = {r["subset"]: r["metrics"] for r in results["deltas"] if r["task"] == task}
        out.append(
            {
                "task": task,
                "auxiliary": card["auxiliary"],
                "svg": svg,
                "columns": card["headline"],
                "rows": [{**row, "delta": deltas.get(row["subset"], {})} for row in scored],
                "primary": metric,
            }
        )
    return out


def _order(row: Mapping[str, Any], metric: str) -> tuple[bool, bool, float]:
    value = row["metrics"][metric]["value"]
    good = 0.0 if value is None else (value if metric in LOWER_IS_BETTER else -value)
    return (row["subset"] != "full", value is None, good)


def ranking(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Leave-one-out drops of every task, with one sentence each."""
    panels, sentences = [], []
    for task, found in results["ranking"].items():
        rows = [row for row in found["modalities"] if row["drop"]["value"] is not None]
        if not rows:
            continue
        metric = tables.metric_name(found["metric"])
        gain = "increase" if found["metric"] in LOWER_IS_BETTER else "loss"
        panel = {"title": task, "xlabel": f"{metric} {gain} when removed"}
        panels.append({**panel, "rows": [{**row, "label": row["modality"]} for row in rows]})
        sure = [row for row in rows if row["drop"]["low"] is not None and row["drop"]["low"] > 0]
        if sure:
            named = ", ".join(f"{r['modality']} ({tables.text(r['drop']['value'])})" for r in sure)
            sentences.append(f"{task}: removing {named} costs {metric} beyond chance.")
        else:
            sentences.append(f"{task}: no single modality is needed beyond chance.")
    if not panels:
        return None
    alt = "loss of the primary metric when one modality is removed"
    return {"svg": plots.drops(panels, alt=alt), "sentences": sentences}


def strata(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The full input's primary metric by natural presence pattern."""
    rows = []
    for row in results["strata"]:
        ((metric, estimate),) = row["metrics"].items()
        rows.append({**row, "metric": metric, "estimate": estimate})
    return rows


def calibration(results: Mapping[str, Any]) -> str | None:
    """Reliability diagrams of all tasks."""
    panels = []
    for task, found in results["calibration"].items():
        error = tables.scores(results, task).get("ece", {}).get("value")
        ordered = (
            found
            if results["tasks"][task]["kind"] == "multilabel"
            else sorted(found, key=lambda item: item["label"])
        )
        for item in ordered:
            if len(item["curve"]) < 2:
                continue
            name = item["label"]
            single = len(found) == 1 and error is not None
            panels.append(
                {**item, "title": f"{name}, ECE {tables.text(error)}" if single else name}
            )
    return plots.calibration(panels, alt="reliability diagrams") if panels else None


def routing(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Heat map, balance and information of each layer (the first eight)."""
    out = []
    for name, layer in list(results["routing"].items())[:MAX_LAYERS]:
        groups = [
            (
                f"by {group}"
                if group in ("modality", "presence pattern")
                else f"by {group} outcome",
                rows,
            )
            for group, rows in layer["heat"].items()
            if rows
        ]
        svg = None
        if groups:
            alt = f"expert load of {name} by modality, presence pattern and outcome"
            svg = plots.heat(groups, layer["experts"], layer["num_experts"], alt=alt)
        out.append({"name": name, "svg": svg, **layer})
    return out
