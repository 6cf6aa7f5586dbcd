"""The section on who was studied: table one."""

from m4.eval.report import words
from m4.eval.report.parts import Cell, Fold, How, Part, Row, Run, Section, Table

MAX_SHOWN = 24  # features beside the fold


def section(run: Run) -> Section | None:
    """Patients, groups, values and what was not measured; None without values."""
    found = (run.results or {}).get("table_one")
    if not found or not found["columns"]:
        return None
    assert run.results is not None
    said, smallest = run.results.get("words", {}), run.smallest
    columns = found["columns"]
    names = [_name(column) for column in columns]
    rows = [
        Row(["patients", *(words.cell(c["patients"], smallest) for c in columns)]),
        Row(["rows", *(words.cell(c["rows"], smallest) for c in columns)]),
    ]
    for group in columns[0]["groups"]:
        every = sorted({k for column in columns for k in column["groups"].get(group, {})})
        for i, category in enumerate(every):
            shares = (column["groups"].get(group, {}).get(category, "–") for column in columns)
            rows.append(Row([f"{group}: {category or 'unknown'}", *shares], begins=i == 0))
    lines = [_feature(f, feature, columns, said) for f, feature in enumerate(found["features"])]
    static = [line for line, feature in zip(lines, found["features"], strict=True)
              if _kind(run, feature["modality"]) == "table"]  # fmt: skip
    more = [line for line in lines if line not in static[:MAX_SHOWN]]
    parts: list[Part] = [
        How("Median (quartiles) of each patient's first value, or the share of patients; below it "
            "in how many patients it was measured at all. “With” and “without” are the outcome's "
            "two sides of the last split."),
        Table("table_one", ["", *names], rows + static[:MAX_SHOWN]),
    ]  # fmt: skip
    if more:
        parts.append(Fold("All other features", (Table("table_one_more", ["", *names], more),)))
    return Section("patients", "Who was studied", parts)


def _kind(run: Run, modality: str) -> str:
    known = (run.data or {}).get("schema", {}).get("modalities", [])
    return next((m["kind"] for m in known if m["name"] == modality), "")


def _name(column) -> str:
    task = column.get("task")
    return f"{column['name']} {task}" if task else column["name"]


def _feature(f: int, feature, columns, said) -> Row:
    own = said.get("modalities", {}).get(feature["modality"], {}).get("features", {})
    word = own.get(feature["feature"], {})
    name, unit = word.get("title") or feature["feature"], word.get("unit", "")
    cells: list[Cell | str] = [f"{name}, {unit}" if unit else name]
    for column in columns:
        found = column["features"][f]
        seen = f"measured in {found['observed']}"
        if "quartiles" in found:
            low, middle, high = map(words.text, found["quartiles"])
            cells.append(Cell(f"{middle} ({low} to {high})", seen))
        else:
            cells.append(Cell(found.get("share", "–"), seen))
    return Row(cells)
