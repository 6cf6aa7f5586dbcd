"""What each section of the report shows, as template context.

First those of a split's results, then those of the run: training, cohort, configuration. An `E`
is an estimate of `m4.eval.results`: {value, low, high, note?}.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m4 import cells
from m4.eval.report import plots, words
from m4.eval.report.parts import Cell, Row, Table, estimate, number
from m4.eval.report.purpose import in_unit, titled
from m4.specs import LOWER_IS_BETTER

CHIPS = {  # mood -> style and text
    "good": ("good", "✓ better than "),
    "level": ("plain", "= no clear difference to "),
    "bad": ("warn", "✗ worse than "),
    "unknown": ("plain", "? not enough data to compare"),
}
MAX_LAYERS = 8
MAX_LINES = 8  # of a panel of learning curves
MAX_PATTERNS = 20  # combinations of modalities


def cards(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The glance: each task's primary metric, and what the strongest reference says to it."""
    verdict = {v["task"]: v for v in words.verdicts(results) if v["strongest"]}
    said = results.get("words", {})
    return [
        {
            "task": task,
            "metric": card["primary"],
            "estimate": words.scores(results, task).get(card["primary"]),
            "chip": _chip(verdict.get(task), card["kind"]),
            "title": said.get("tasks", {}).get(task, {}).get("title", ""),
            "name": in_unit(said, task, card["primary"]),
            "auxiliary": card["auxiliary"],
        }
        for task, card in results["tasks"].items()
    ]


def _chip(verdict: Mapping[str, Any] | None, kind: str) -> tuple[str, str] | None:
    if verdict is None:
        return None
    style, said = CHIPS[verdict["mood"]]
    known = verdict["mood"] != "unknown"
    return style, said + (words.reference_name(verdict["reference"], kind) if known else "")


def task_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of tasks with the same metrics: the model, the references, the paired difference."""
    out = []
    for columns, tasks in words.grouped(results):
        blocks = []
        for task in tasks:
            rows = [{"label": "m4", "kind": "model", "metrics": words.scores(results, task)}]
            for name, by_task in results["references"].items():
                if task not in by_task:
                    continue
                label = words.reference_name(name, results["tasks"][task]["kind"])
                found = by_task[task]
                rows.append({"label": label, "kind": "reference", "metrics": found["metrics"]})
                rows.append({"label": f"m4 − {label}", "kind": "delta", "metrics": found["delta"]})
                if name == words.BLEND and (gain := found.get("against", {}).get("boosting")):
                    rows.append({"label": "blend − boosting", "kind": "delta", "metrics": gain})
            blocks.append({"task": task, "card": results["tasks"][task], "rows": rows})
        table = _task_table(results, columns, blocks)
        out.append({"columns": columns, "table": table, "notes": _notes(blocks)})
    return out


def _task_table(results: Mapping[str, Any], columns, blocks) -> Table:
    rows, smallest = [], results["min_patients"]
    for block in blocks:
        card = block["card"]
        for row in block["rows"]:
            label: Cell | str = row["label"]
            if row["kind"] == "model":
                note = f"{words.cell(card['patients'], smallest)} patients"
                if card["kind"] != "regression":
                    events = words.cell(card["events"], smallest)
                    note += f", {events} {words.with_outcome(card).rstrip(',')}"
                title = titled(results.get("words"), block["task"])
                label = Cell(f"{title}, auxiliary" if card["auxiliary"] else title, note)
            cells = [estimate(row["metrics"].get(m), sign=row["kind"] == "delta") for m in columns]
            rows.append(Row([label, *cells], kind=row["kind"], begins=row["kind"] == "model"))
    kinds = {block["card"]["kind"] for block in blocks}
    only = blocks[0]["task"] if len(blocks) == 1 else ""
    names = [
        f"{in_unit(results.get('words'), only, m)} {words.arrow(m)}" if only else _column(m)
        for m in columns
    ]
    return Table(f"tasks_{'_'.join(sorted(kinds))}_{len(columns)}", ["task", *names], rows)


def _column(metric: str) -> str:
    return f"{words.metric_name(metric)} {words.arrow(metric)}"


def _notes(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = {}
    for block in blocks:
        for row in block["rows"]:
            for metric, e in row["metrics"].items():
                if e.get("note"):
                    key = block["task"], row["label"], e["note"]
                    notes.setdefault(key, []).append(words.metric_name(metric))
    return [f"{t}, {row}, {', '.join(m)}: {note}" for (t, row, note), m in notes.items()]


def subset_plots(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per task the forest plot over subsets, full first, then from good to bad, and its table.

    Subsets are compared on the rows of the full input (`common`), which are the same for all.
    """
    info = {subset["label"]: subset for subset in results["subsets"]}
    out = []
    for task, card in results["tasks"].items():
        metric = card["primary"]
        scored = [row for row in results["scores"] if row["task"] == task]
        scored.sort(key=lambda row: _order(row, metric))
        rows = []
        for row in scored:
            e, subset = _common(row)[metric], info[row["subset"]]
            span = words.interval(e)
            line = f"{words.text(e['value'])} ({span})" if span else "no estimate"
            count = words.cell(row["patients"], results["min_patients"])
            line += f" · n≈{count}" if row["patients"] is not None else f" · n{count}"
            rows.append({**subset, **e, "text": line})
        if len(rows) < 2 or all(row["value"] is None for row in rows):
            continue
        name = f"{words.metric_name(metric)} {words.arrow(metric)}"
        alt = f"{name} of {task} for every modality subset"
        svg = plots.subsets(rows, results["modalities"], name, alt=alt)
        deltas = {r["subset"]: _common(r) for r in results["deltas"] if r["task"] == task}
        smallest, primary = results["min_patients"], card["primary"]
        lines = []
        for row in scored:
            delta = deltas.get(row["subset"], {}).get(primary)
            cells = [estimate(row["metrics"].get(m)) for m in card["headline"]]
            patients = words.cell(row["patients"], smallest)
            lines.append(Row([row["subset"], patients, *cells, estimate(delta, sign=True)]))
        columns = ["subset", "patients", *map(_column, card["headline"])]
        columns.append(f"full − subset, {words.metric_name(primary)}")
        title = titled(results.get("words"), task)
        table = Table(f"subsets_{task}", columns, lines)
        out.append({"task": title, "card": card, "svg": svg, "table": table})
    return out


def strata(results: Mapping[str, Any]) -> Table | None:
    """The full input by natural presence pattern."""
    rows = [
        Row([row["pattern"], row["task"], words.cell(row["patients"], results["min_patients"]),
             words.metric_name(metric), estimate(e)])
        for row in results["strata"]
        for metric, e in row["metrics"].items()
    ]  # fmt: skip
    return (
        Table("patterns", ["pattern", "task", "patients", "metric", "score"], rows)
        if rows
        else None
    )


def patterns(results: Mapping[str, Any] | None) -> Table | None:
    """How many patients come with which modalities."""
    if not results or not results["patterns"]:
        return None
    rows = [
        Row([p["label"], words.cell(p["patients"], results["min_patients"])])
        for p in results["patterns"]
    ]
    return Table("presence", ["present", "patients (rounded to tens)"], rows, plain=True)


def _common(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("common", row["metrics"])  # older results have none


def _order(row: Mapping[str, Any], metric: str) -> tuple[bool, bool, float]:
    value = _common(row)[metric]["value"]
    good = 0.0 if value is None else (value if metric in LOWER_IS_BETTER else -value)
    return (row["subset"] != "full", value is None, good)


def ranking(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Leave-one-out drops of every task, with one sentence each."""
    panels, sentences = [], []
    for task, found in results["ranking"].items():
        rows = [row for row in found["modalities"] if row["drop"]["value"] is not None]
        if not rows:
            continue
        metric = words.metric_name(found["metric"])
        gain = "increase" if found["metric"] in LOWER_IS_BETTER else "loss"
        panel = {"title": task, "xlabel": f"{metric} {gain} when removed"}
        panels.append({**panel, "rows": [{**row, "label": row["modality"]} for row in rows]})
        sure = [row for row in rows if plots.beyond_chance(row["drop"])]
        if sure:
            named = ", ".join(f"{r['modality']} ({words.text(r['drop']['value'])})" for r in sure)
            sentences.append(f"{task}: removing {named} costs {metric} beyond chance.")
        else:
            sentences.append(f"{task}: no single modality is needed beyond chance.")
    if not panels:
        return None
    alt = "loss of the primary metric when one modality is removed"
    return {"svg": plots.drops(panels, alt=alt), "sentences": sentences}


def calibration(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reliability diagrams of all tasks, and a sentence on each curve."""
    panels, sentences = [], []
    for task, found in results["calibration"].items():
        if results["tasks"][task]["kind"] != "multilabel":
            found = sorted(found, key=lambda item: item["label"])
        for item in found:
            if len(item["curve"]) < 2:
                continue
            panels.append({**item, "title": item["label"]})
            if "error" in item:
                low, high = map(words.text, item["band"])
                sentences.append(
                    f"{item['label']}: calibration error {words.text(item['error']['value'])} "
                    f"({words.interval(item['error']) or 'no interval'}). Plug-in ECE "
                    f"{words.text(item['ece'])}; a perfectly calibrated model with these "
                    f"predictions would show {low} to {high}."
                )
    svg = plots.calibration(panels, alt="reliability diagrams") if panels else None
    return {"svg": svg, "sentences": sentences} if svg else None


def routing(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Heat map, balance and information of each layer (the first eight)."""
    out = []
    for name, layer in list(results["routing"].items())[:MAX_LAYERS]:
        inputs = ("modality", "presence pattern")
        groups = [
            (f"by {group}" if group in inputs else f"by {group} outcome", rows)
            for group, rows in layer["heat"].items()
            if rows
        ]
        svg = None
        if groups:
            alt = f"expert load of {name} by modality, presence pattern and outcome"
            svg = plots.heat(groups, layer["experts"], layer["num_experts"], alt=alt)
        information = layer.get("information") or {}
        rows = [
            Row([group, number(i["plugin"]), number(i["null"]), number(i["excess"]),
                 number(i["share"], percent=True), number(i["p"])])
            for group, i in information.items()
        ]  # fmt: skip
        columns = ["what the expert tells about", "mutual information (nat)", "by chance"]
        columns += ["excess", "share of the entropy", "p"]
        table = Table(f"information_{name}", columns, rows) if rows else None
        own = {"name": name, "svg": svg, "table": table, "verdict": _expert_verdict(layer)}
        out.append({**layer, **own})
    return out


def balance(results: Mapping[str, Any]) -> Table | None:
    """How evenly every layer uses its experts."""
    rows = []
    for name, layer in list(results["routing"].items())[:MAX_LAYERS]:
        b = layer["balance"]
        found = (b["effective"], b["cv"], b["max_vio"], b["gini"], b["dead"])
        found += (layer["router_entropy"], layer["dropped"])
        rows.append(Row([name, layer["num_experts"], *map(number, found)]))
    columns = ["layer", "experts", "effective", "load CV", "max / mean − 1", "Gini", "dead"]
    columns += ["router entropy", "dropped"]
    return Table("experts", columns, rows) if rows else None


def _expert_verdict(layer: Mapping[str, Any]) -> str:
    """One sentence: are the experts used, and do they know anything?"""
    effective, experts = layer["balance"]["effective"], layer["num_experts"]
    used = "–" if effective is None else f"{effective:.1f}"
    even = effective is not None and effective >= 0.5 * experts
    text = f"About {used} of {experts} experts do the work" + (", evenly. " if even else ". ")
    information = layer.get("information") or {}
    sure = [
        f"{group} ({words.percent(i['share'])} of what there is to tell)"
        for group, i in information.items()
        if i["p"] is not None and i["p"] * len(information) <= 0.05 and (i["share"] or 0) >= 0.01
    ]
    if not information:
        return text + "What they specialise in was not computed."
    if not sure:
        return text + "What a token is sent to tells nothing beyond chance about its patient."
    return text + f"Which expert is chosen tells about {', '.join(sure)}."


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
            rows.append((name, _setting(value)))
    return rows


def _setting(value: Any) -> str:
    return ", ".join(map(_setting, value)) if isinstance(value, list | tuple) else str(value)


def training(log: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Learning curves out of metrics.jsonl, and the step that was selected."""
    if not log:
        return None
    select = config.get("train", {}).get("select")
    dropped = _lines(log, "train/moe/", "/dropped")
    if not any(value for _, values in dropped.values() for value in values):
        dropped = {}
    panels = [
        {"title": "training loss", "lines": {"total": _series(log, "train/loss")}},
        {"title": "loss by task", "lines": _lines(log, "train/task/")},
        *_validation(log, select),
        {"title": "router entropy (nats)", "lines": _lines(log, "train/moe/", "/entropy")},
        {"title": "expert load CV", "lines": _lines(log, "train/moe/", "/load_cv")},
        {"title": "dropped assignments", "lines": dropped},
        {"title": "examples per second", "lines": {"ex/s": _series(log, "time/examples_per_s")}},
    ]
    panels = [panel for panel in panels if any(panel["lines"].values())]
    best = _best(log, select)
    waits = [row["time/input_wait"] for row in log if row.get("time/input_wait") is not None]
    svg = plots.curves(panels, mark=best and best[0], alt="learning curves") if panels else None
    return {
        "svg": svg,
        "select": select,
        "best": best,
        "steps": log[-1]["step"],
        "wait": sum(waits) / len(waits) if waits else None,
        "skipped": sum(row.get("train/skipped") or 0 for row in log),
    }


def _series(log, key: str):
    found = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    return tuple(zip(*found, strict=True)) if found else None


def _lines(log, prefix: str, suffix: str = "") -> dict[str, tuple]:
    """Series of the first `MAX_LINES` keys `prefix<name>suffix`, by name."""
    found = sorted({k for row in log for k in row if k.startswith(prefix) and k.endswith(suffix)})
    series = {k.removeprefix(prefix).removesuffix(suffix): _series(log, k) for k in found}
    return {name: points for name, points in [*series.items()][:MAX_LINES] if points}


def _validation(log, select: str | None) -> list[dict[str, Any]]:
    """One panel per metric that selects or is primary somewhere, one line per task."""
    keys = sorted({k for row in log for k in row if k.startswith("val/")})
    panels: dict[str, dict[str, tuple]] = {}
    for key in keys:
        task, _, metric = key.removeprefix("val/").rpartition("/")
        shown = f"{task}/{metric}" == select or metric in ("auroc", "auprc", "auroc_macro", "mae")
        if shown and (series := _series(log, key)):
            panels.setdefault(metric, {})[task] = series
    out = []
    for metric, lines in panels.items():
        only = f", {next(iter(lines))}" if len(lines) == 1 else ""
        out.append({"title": f"validation {words.metric_name(metric)}{only}", "lines": lines})
    return out


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
        "flow": (flow := _flow(data.get("flow", []), smallest)),
        "flow_table": _plain("flow", ["step", "count"], flow),
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


def splits_table(splits: Sequence[Mapping[str, Any]]) -> Table | None:
    """Rows, patients, presence and labels of every split."""
    if not splits:
        return None
    rows = [Row([what, *(s[what] for s in splits)]) for what in ("rows", "patients")]
    for key, word in (("present", "has "), ("labels", "")):
        for i, name in enumerate(splits[0][key]):
            cells = (s[key].get(name, "–") for s in splits)
            rows.append(Row([f"{word}{name}", *cells], begins=i == 0))
    return Table("splits", ["split", *(s["name"] for s in splits)], rows)


def _plain(name: str, columns: Sequence[str], rows: Sequence[tuple[str, str]]) -> Table | None:
    return Table(name, columns, [Row(row) for row in rows], plain=True) if rows else None


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
        if before is not None and 0 < abs(count - before) < smallest:
            rows.append((step, f"within {smallest} of the line above"))
        else:
            rows.append((step, cells.count(count, smallest)))
            before = count
    return rows


_share = functools.partial(cells.share, digits=0, unknown="–")


def _label(task: Mapping[str, Any], found: Mapping[str, Any], smallest: int) -> str:
    """Prevalence or mean of a task's labels in a split."""
    known, mean = np.ravel(found["known"]), np.ravel(found["mean"])
    if not known.size or max(known) < smallest:
        return "–"
    if task["kind"] == "multiclass":
        return f"{task['dim']} classes"
    if task["kind"] == "regression":
        return f"mean {words.text(mean[0])}"
    if task["kind"] == "survival":  # of time and event
        known, mean = known[1:], mean[1:]
    shown = [
        _share(round(float(n * m)), int(n), smallest) for n, m in zip(known, mean, strict=True) if n
    ]
    if len(shown) == 1:
        return shown[0]
    numbers = sorted(float(s.rstrip("%")) for s in shown if s.endswith("%"))
    low = "rare" if "rare" in shown or not numbers else f"{numbers[0]:.0f}%"
    return f"{low} to {numbers[-1]:.0f}%" if numbers else low
