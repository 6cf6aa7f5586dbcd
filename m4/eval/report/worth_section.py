"""What each modality and each pair is worth (`m4.eval.attribution`), and whom it misleads."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from m4.eval.report import plots, words
from m4.eval.report.parts import (
    Cell,
    Fold,
    Heading,
    How,
    Note,
    Part,
    Plot,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    count,
    estimate,
)

SURE = 0.05  # Holm's adjusted p up to which a pair is called synergistic or redundant
MAX_NAMED = 4


def section(run: Run) -> Section | None:
    """The section, None without an attribution."""
    found = (run.results or {}).get("attribution")
    if not found:
        return None
    parts: list[Part] = [
        How(
            "the more a modality adds when it joins the others, averaged over all orders in which "
            "they can join, the further right it lies; all of them sum to what the full input is "
            "worth above knowing nothing. Log loss is counted in nats: 0.1 nats make what came "
            "true 1.1 times as likely. Left of 0 the model is misled by it."
        )
    ]
    monotone = (run.results or {}).get("monotone", {})
    for task, own in found.items():
        parts += [Heading(task), *_of_task(task, own)]
        if task in monotone:
            parts += _misled(task, monotone[task], run.smallest)
    return Section("worth", "What each modality is worth", parts)


def _of_task(task: str, found: Mapping[str, Any]) -> list[Part]:
    rows = sorted(found["modalities"], key=lambda row: -(row["shapley"]["value"] or 0.0))
    if all(row["shapley"]["value"] is None for row in rows):
        return [Verdict(f"{task}: not enough patients to say what a modality is worth.", "unknown")]
    parts: list[Part] = [Plot(_plot(task, found, rows)), *_verdicts(task, found, rows)]
    parts.append(_values(task, found, rows))
    if found["pairs"]:
        parts.append(Fold("Pairs of modalities", [_pairs(task, found)]))
    for column, categories in found["groups"].items():
        table = _groups(task, column, categories, [row["modality"] for row in rows])
        parts.append(Fold(f"By {column}", [table]))
    if found["combinations"]:
        parts.append(Fold("Every combination of modalities", [_combinations(task, found)]))
    if not found["exact"]:
        parts.append(
            Note(
                f"Of {found['subsets']} combinations, over {found['orders']} random orders, whose "
                "error is in the intervals: there are too many to compute all, so pairs are not "
                "given."
            )
        )
    return parts


def _misled(task: str, found: Mapping[str, Any], smallest: int) -> list[Part]:
    """For how many patients a modality makes the right answer less likely, beside chance."""
    rows = [row for row in found["modalities"] if row["last"]["value"] is not None]
    if not rows:
        return []
    expected = all("expected" in row for row in rows)
    columns = ["modality", "patients ≈", "made worse by it", "of all additions", "mean gain (nats)"]
    columns += ["expected if calibrated", "beyond that"] if expected else []
    lines = []
    for row in rows:
        cells: list[Cell | str] = [row["modality"], count(row["patients"], smallest)]
        cells += [estimate(row[key], percent=True) for key in ("last", "any")]
        cells += [estimate(row["gain"], sign=True)]
        if expected:
            cells += [estimate(row[key], percent=True) for key in ("expected", "excess")]
        lines.append(Row(cells))
    parts: list[Part] = [
        How(
            "of the patients who have a modality, for how many it makes what came true less likely "
            f"(by {found['noticed']:.0%} or more) when all else is known already. Even a perfect "
            "model is unlucky with some; how many is what a calibrated model with these answers "
            "would show. Above that, patients are misled."
        ),
        Table(f"misled-{task}", columns, lines),
    ]
    sure = [row for row in rows if expected and (row["excess"]["low"] or 0.0) > 0]
    for row in sure:
        more, name = words.percent(row["excess"]["value"]), row["modality"]
        said = f"{task}: {name} makes the answer worse for {more} more patients than chance would"
        parts.append(Verdict(f"{said} ({_percents(row['excess'])}).", "bad"))
    return parts


def _percents(e: Mapping[str, Any]) -> str:
    return f"{words.percent(e['low'])} to {words.percent(e['high'])}"


def _plot(task: str, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Shapley values with intervals, from most to least."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            e = row["shapley"]
            sure = e["low"] is not None and (e["low"] > 0 or e["high"] < 0)
            colour = plots.SOFT if not sure else plots.BLUE if e["value"] > 0 else plots.RED
            if e["low"] is not None:
                axes.plot([e["low"], e["high"]], [y, y], color=colour, lw=1.8)
            axes.plot(e["value"], y, "o", color=colour, ms=5.5, mfc=colour if sure else "white")
        axes.axvline(0, color=plots.INK, lw=1)
        axes.set_yticks(range(len(rows)), [row["modality"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"worth ({found['unit']})")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    alt = f"Shapley value of each modality for {task}"
    return plots.draw(paint, plots.WIDTH * 0.75, 0.36 * len(rows) + 0.8, alt)


def _verdicts(task: str, found: Mapping[str, Any], rows) -> list[Verdict]:
    """One sentence on the best, on what misleads, and on pairs beyond chance."""
    out, total = [], found["total"]["value"]
    best = rows[0]
    if best["shapley"]["low"] is not None and best["shapley"]["low"] > 0 and total > 0:
        said = f"{task}: {best['modality']} is worth most"
        share = words.percent(best["shapley"]["value"] / total)
        out.append(Verdict(f"{said}, {_said(best['shapley'])}, {share} of the total.", "good"))
    misled = [
        f"{row['modality']} ({_said(row['shapley'])})"
        for row in rows
        if row["shapley"]["high"] is not None and row["shapley"]["high"] < 0
    ]
    if misled:
        out.append(Verdict(f"{task}: the model is misled by {', '.join(misled)}.", "bad"))
    sure = [row for row in found["pairs"] if row["interaction"].get("p_holm", 1.0) <= SURE]
    sure.sort(key=lambda row: -abs(row["interaction"]["value"]))
    for row in sure[:MAX_NAMED]:
        a, b = row["pair"]
        if row["interaction"]["value"] > 0:
            says = f"{a} and {b} tell more together than apart (synergy"
        else:
            says = f"{a} and {b} tell partly the same (redundancy"
        out.append(Verdict(f"{task}: {says}, {_said(row['interaction'])}).", "level"))
    if found["pairs"] and not sure:
        out.append(Verdict(f"{task}: no pair interacts beyond chance.", "level"))
    return out


def _said(e: Mapping[str, Any]) -> str:
    span = words.interval(e, sign=True)
    return words.text(e["value"], sign=True) + (f", {span}" if span else "")


def _values(task: str, found: Mapping[str, Any], rows) -> Table:
    primary = found["primary"]
    ranks = {r["modality"]: r["shapley"] for r in primary["modalities"]} if primary else {}
    columns = ["modality", f"worth ({found['unit']})", "where it is there"]
    columns += ["beside its pairs"] if found["pairs"] else []
    columns += [f"in {words.metric_name(primary['metric'])}"] if primary else []
    lines = []
    for row in rows:
        cells: list[Cell | str] = [row["modality"]]
        cells += [estimate(row[key], sign=True) for key in ("shapley", "if_present")]
        cells += [estimate(row["alone"], sign=True)] if found["pairs"] else []
        cells += [estimate(ranks[row["modality"]], sign=True)] if primary else []
        lines.append(Row(cells))
    total = [Cell("all together"), estimate(found["total"], sign=True)]
    lines.append(Row([*total, *[""] * (len(columns) - 2)], kind="head"))
    return Table(f"worth-{task}", columns, lines)


def _pairs(task: str, found: Mapping[str, Any]) -> Table:
    rows = sorted(found["pairs"], key=lambda row: -abs(row["interaction"]["value"] or 0.0))
    lines = []
    for row in rows:
        e, (a, b) = row["interaction"], row["pair"]
        sure = e.get("p_holm", 1.0) <= SURE
        kind = "open" if not sure else "synergy" if e["value"] > 0 else "redundancy"
        adjusted = Cell(words.text(e.get("p_holm")), value=e.get("p_holm"))
        lines.append(Row([f"{a} × {b}", estimate(e, sign=True), adjusted, kind]))
    columns = ["pair", f"together above apart ({found['unit']})", "p (Holm)", "kind"]
    return Table(f"pairs-{task}", columns, lines)


def _groups(task: str, column: str, categories, names: Sequence[str]) -> Table:
    lines = []
    for category in categories:
        worth = {row["modality"]: row["shapley"] for row in category["modalities"]}
        cells = [estimate(worth[name], sign=True) for name in names]
        lines.append(Row([category["category"], category["patients"], *cells]))
    return Table(f"worth-{task}-{column}", [column, "patients ≈", *names], lines)


def _combinations(task: str, found: Mapping[str, Any]) -> Table:
    rows = sorted(found["combinations"], key=lambda row: -(row["worth"]["value"] or 0.0))
    named = [(" + ".join(row["keep"]) or "nothing", row["worth"]) for row in rows]
    lines = [Row([name, estimate(worth)]) for name, worth in named]
    return Table(f"combinations-{task}", ["combination", found["unit"]], lines)
