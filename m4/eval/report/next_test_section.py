"""Which test next: the section of `m4.eval.acquire`."""

from collections.abc import Mapping
from typing import Any

from m4.eval.report import words
from m4.eval.report.parts import (
    Cell,
    Heading,
    How,
    Note,
    Part,
    Row,
    Run,
    Section,
    Table,
    Verdict,
    count,
    estimate,
)

SAID = {
    "random": "anybody, any test",
    "static": "anybody, the test that is best on average",
    "entropy": "the most uncertain, the test that is best on average",
    "value": "whom the value model names, the test that it names",
    "bound": "what is best in hindsight (nobody can be better)",
}


def section(run: Run) -> Section | None:
    """The section, None where nothing was computed."""
    found = (run.results or {}).get("next_test")
    if not found:
        return None
    parts: list[Part] = [
        How(
            "of patients of whom one modality alone is known, some may get one test more, as far "
            "as the budget goes. The gain is how much likelier that makes what came true, in nats "
            "a patient over all of them. A value model is worth having if it gains more than a "
            "fixed order."
        )
    ]
    for task, own in found.items():
        parts += [Heading(task), *_of_task(task, own, run.smallest)]
    return Section("next-test", "Which test next", parts)


def _of_task(task: str, found: Mapping[str, Any], smallest: int) -> list[Part]:
    gain = {row["arm"]: row["difference"] for row in found["against"]}
    rows = []
    for row in found["arms"]:
        less: Cell | str = estimate(gain[row["arm"]], sign=True) if row["arm"] in gain else ""
        rows.append(Row([SAID[row["arm"]], estimate(row["gain"], sign=True), less]))
    columns = ["who is tested, with what", "gain (nats)", "value model above it"]
    parts: list[Part] = [_verdict(task, gain), Table(f"next-test-{task}", columns, rows)]
    if found["next"]:
        lines = [Row([row["modality"], count(row["patients"], smallest)]) for row in found["next"]]
        names = ["expected to tell most next", "patients ≈"]
        parts.append(Table(f"next-{task}", names, lines))
    costs = {name: cost for name, cost in found["costs"].items() if cost != 1}
    priced = ", ".join(f"{name} {words.text(cost)}" for name, cost in costs.items())
    budget = words.text(found["budget"])
    note = f"Begun with {found['start']}. Costs: {priced or 'the same for all'}"
    parts.append(Note(f"{note}; budget {budget} a patient."))
    return parts


def _verdict(task: str, gain: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Whether the value model clears random, a fixed order and doubt, with whole intervals."""
    lows = {arm: e["low"] for arm, e in gain.items()}
    if any(low is None for low in lows.values()):
        return Verdict(f"{task}: not enough patients to say which test comes next.", "unknown")
    lost = [arm for arm, low in lows.items() if low <= 0]
    if not lost:
        said = "choosing by patient beats any fixed order, doubt and chance"
        return Verdict(f"{task}: {said}.", "good")
    names = {"random": "chance", "static": "a fixed order", "entropy": "doubt"}
    return Verdict(
        f"{task}: choosing by patient does not clear {', '.join(names[arm] for arm in lost)}.",
        "level",
    )
