"""What is in a MEDS folder, and a first definition of it.

The draft is a proposal: it cannot know what is recorded only after the fact, so groups whose names
speak of death or discharge are left out, and a person has to read the rest.
"""

import dataclasses
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m4 import cells
from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import TASK_COLUMN, find
from m4.data.sets.declared.points import SPLIT_FILE
from m4.errors import DataError, printable

INTEGER = "integer_value"
COLUMNS = ("subject_id", "time", "code", "numeric_value", "text_value")
OUTCOME = re.compile(r"death|dead|expired|discharge|deceased|mortality", re.IGNORECASE)
SMALLEST = 10  # subjects
MOST = 60  # features of one series
FEW = 20  # of a table, out of one group
BIRTH = "MEDS_BIRTH"
OWN = (BIRTH, "MEDS_DEATH")  # each is a group
SEPARATORS = ("//", "/")
END = [  # how to train on a draft; `select` is the first task's
    "# m4-moe --config=own:meds --workdir=runs/own --set data.options.file=THIS_FILE \\",
    "#   --set data.raw_dir=FOLDER_ABOVE --set train.select=TASK/METRIC",
]
GENERIC = ("labels", "tasks", "task_labels", "train", "tuning", "held_out")  # folders of labels


@dataclasses.dataclass
class Code:
    """Counts of one code; subjects are counted per batch, so a few come twice."""

    events: int = 0
    subjects: int = 0
    numbers: int = 0
    texts: int = 0
    some: set[str] = dataclasses.field(default_factory=set)  # subjects, all if below SMALLEST

    @staticmethod
    def total(codes: Iterable["Code"]) -> tuple[int, ...]:
        """Events, subjects, numbers and texts of several codes."""
        rows = [(c.events, c.subjects, c.numbers, c.texts) for c in codes]
        return tuple(map(sum, zip(*rows, strict=True)))

    @staticmethod
    def rare(codes: Iterable["Code"]) -> bool:
        """Whether several codes are of so few subjects that their names may be those of people."""
        return len(set[str]().union(*(code.some for code in codes))) < SMALLEST


def read(root: Path) -> tuple[dict[str, Code], dict[str, int]]:
    """Counts per code over all events, and subjects per group of codes.

    Raises DataError for files that can't be used.
    """
    paths = find(root, "data")
    if not paths:
        raise DataError(f"{root / 'data'}: no event files")
    found: dict[str, Code] = defaultdict(Code)
    subjects: dict[str, int] = defaultdict(int)
    for path in paths:
        for table in arrow_files.tables(path, only=COLUMNS):
            part = {"code": table.strings("code"), "subject": table.strings("subject_id")}
            coded = part["code"].dictionary_encode()
            names = [None if c is None else group_of(c) for c in coded.dictionary.to_pylist()]
            part["group"] = pa.array(names, pa.string()).take(coded.indices)
            for key, name in (("number", "numeric_value"), ("text", "text_value")):
                valid = table.raw(name).is_valid() if table.has(name) else [False] * len(table)
                part[key] = pa.array(valid, pa.bool_()).cast(pa.int64())
            rows = pa.table(part).filter(part["code"].is_valid())
            wanted = [("subject", "count"), ("subject", "count_distinct")]
            wanted += [("number", "sum"), ("text", "sum")]
            for row in rows.group_by("code").aggregate(wanted).to_pylist():
                code = found[row["code"]]
                code.events += row["subject_count"]
                code.subjects += row["subject_count_distinct"]
                code.numbers += row["number_sum"]
                code.texts += row["text_sum"]
            _meet(found, rows)
            for row in rows.group_by("group").aggregate(wanted[1:2]).to_pylist():
                subjects[row["group"]] += row["subject_count_distinct"]
    return dict(found), dict(subjects)


def _meet(found: dict[str, Code], rows: pa.Table) -> None:
    """Takes in subjects of the codes of which fewer than SMALLEST are known."""
    few = [name for name in rows["code"].unique().to_pylist() if Code.rare([found[name]])]
    new = pc.and_(
        pc.is_in(rows["code"], pa.array(few, rows["code"].type)), rows["subject"].is_valid()
    )
    for row in rows.filter(new).group_by(["code", "subject"]).aggregate([]).to_pylist():
        some = found[row["code"]].some
        if len(some) < SMALLEST:
            some.add(row["subject"])


def group_of(code: str) -> str:
    """What stands before `//`, or before the first `/`; nothing for a code without either."""
    for mark in SEPARATORS:
        before, found, _ = code.partition(mark)
        if found:
            return f"{before}{mark}"
    return code if code in OWN else ""


def groups(codes: dict[str, Code]) -> dict[str, dict[str, Code]]:
    """Codes by their group, the largest group first."""
    found: dict[str, dict[str, Code]] = defaultdict(dict)
    for name, code in codes.items():
        found[group_of(name)][name] = code
    return dict(sorted(found.items(), key=lambda item: -sum(c.events for c in item[1].values())))


def lines(root: Path) -> list[str]:
    """A table of code groups, label files and splits; groups of few subjects are not named."""
    out = [
        f"MEDS data set {printable(str(root))}",
        "",
        "group                     codes      events  numbers  text",
    ]
    rare: list[Code] = []
    for group, codes in groups(read(root)[0]).items():
        if Code.rare(codes.values()):
            rare += codes.values()
            continue
        events, _, numbers, texts = Code.total(codes.values())
        shares = f"{numbers / events:>9.0%}{texts / events:>6.0%}"
        name = printable(group.rstrip("/")) or "(no group)"
        out.append(f"{name:24}{len(codes):>7,}{events:>12,}{shares}")
    if rare:
        counts = [cells.count(n, SMALLEST) for n in (len(rare), Code.total(rare)[0])]
        out.append(f"{'(groups of few subjects)':24}{counts[0]:>7}{counts[1]:>12}")
    for name, (path, column) in labels(root).items():
        out.append(f"labels {name}: {printable(path)}, {column}")
    has = (root / SPLIT_FILE).is_file()
    return [*out, f"splits: {SPLIT_FILE}{'' if has else ' is missing: a keyed hash is used'}"]


def labels(root: Path) -> dict[str, tuple[str, str]]:
    """Task name -> (path below root, label column in use) of whatever looks like label files."""
    columns = (*TASK_COLUMN.values(), INTEGER)
    found: dict[str, tuple[str, dict[str, int]]] = {}
    files = (p for p in root.rglob("*.parquet") if "data" not in p.parts[-3:-1] and p.is_file())
    for path in sorted(files):
        try:
            names = {*pq.read_schema(path).names}
        except (pa.ArrowInvalid, OSError):
            raise DataError(f"{path}: cannot be read as Parquet; move it away") from None
        if not ({"subject_id", "prediction_time"} <= names and names & {*columns}):
            continue
        place = path.relative_to(root)
        parts = [p for p in place.parts[:-1] if p not in GENERIC]
        whole = place.parent if parts else place
        if parts and place.parent.name in GENERIC:  # one folder per split
            whole = place.parent.parent
        name = re.sub(r"\W+", "_", "_".join(parts) or path.stem).strip("_")
        counts = found.setdefault(name, (whole.as_posix(), dict.fromkeys(columns, 0)))[1]
        for table in arrow_files.tables(path, only=[c for c in columns if c in names]):
            for column in names & {*columns}:
                counts[column] += len(table) - table.raw(column).null_count
    return {  # of the four columns of the schema one is filled
        name: (place, max(counts, key=lambda column: counts[column]))
        for name, (place, counts) in found.items()
    }


def draft(root: Path) -> list[str]:
    """A definition in TOML, line by line."""
    text = json.dumps  # a JSON string is a TOML string
    out = [
        "# A draft: check every modality for what is known only after the prediction time.",
        f"name = {text(root.resolve().name)}",
        f"folder = {text(root.resolve().name)}",
        "",
        "[window]",
        "hours = 24",
    ]
    for name, (path, column) in labels(root).items():
        out += ["", f"[tasks.{name}]", f"labels = {text(path)}", *_task(root, path, column)]
    table, left_out, taken = [], [], {"static"}
    counts, subjects = read(root)
    for group, codes in groups(counts).items():
        if OUTCOME.search(group):
            left_out += [] if Code.rare(codes.values()) else [printable(group)]
        elif group == BIRTH:
            table.append(f'age = {{ codes = {text(BIRTH)}, take = "years_since" }}')
        else:
            out += _modality(group, codes, subjects[group], table, taken)
    if table:
        out += ["", "[modalities.static]", 'kind = "table"', "[modalities.static.features]", *table]
    if left_out:
        out += ["", f"# Left out, as they may tell the outcome: {', '.join(left_out)}"]
    return [
        *out,
        "",
        *END,
    ]


def _task(root: Path, path: str, column: str) -> list[str]:
    kinds = {value: key for key, value in TASK_COLUMN.items()}
    values: set = set()
    if column in ("categorical_value", INTEGER):
        for file in find(root, path):
            for table in arrow_files.tables(file, only=[column]):
                values |= {*table.strings(column).drop_null().unique().to_pylist()}
    kind = "binary" if values and values <= {"0", "1"} else kinds.get(column, "regression")
    out = [f'kind = "{kind}"']
    if kind == "multiclass":
        out.append(f"classes = {json.dumps(sorted(values))}")
    return out if TASK_COLUMN[kind] == column else [*out, f'column = "{column}"']


def _modality(
    group: str, codes: dict[str, Code], subjects: int, table: list[str], taken: set[str]
) -> list[str]:
    events, uses, numbers, texts = Code.total(codes.values())  # a subject counts once per code
    enough = [name for name, code in codes.items() if not Code.rare([code])]
    ranked = sorted(enough, key=lambda name: (-codes[name].subjects, name))[:MOST]
    key = re.sub(r"\W+", "_", group.lower()).strip("_") or "events"
    if not ranked:
        return []
    key = next(k for n in itertools.count(1) if (k := f"{key}_{n}" if n > 1 else key) not in taken)
    taken.add(key)
    text = json.dumps
    once = events <= 2 * uses and len(ranked) <= FEW
    if numbers >= events / 2 and once:
        table += [f"{text(name)} = {text(_literal(name))}" for name in ranked]
        return []
    if numbers >= events / 2:
        rows = [f"{text(n.removeprefix(group))} = {text(_literal(n))}" for n in ranked]
        head = [f"[modalities.{key}]", 'kind = "series"', "every = 1", 'take = "mean"']
        return ["", *head, f"[modalities.{key}.features]", *rows]
    if texts > events / 2:
        return ["", f"[modalities.{key}]", 'kind = "text"', f"codes = {text(_all(group, codes))}"]
    if once and uses <= 1.1 * subjects and "//" in group:
        group = group.removesuffix("//")
        values = [name.removeprefix(f"{group}//") for name in ranked]
        if not any("*" in v or "?" in v for v in values):
            table.append(f"{text(key)} = {{ codes = {text(group)}, values = {text(values)} }}")
            return []
    return ["", f"[modalities.{key}]", 'kind = "codes"', f"codes = {text(_all(group, codes))}"]


def _literal(code: str) -> str:
    return f"re:{re.escape(code)}" if "*" in code or "?" in code else code


def _all(group: str, codes: dict[str, Code]) -> list[str]:
    """Patterns of all codes of a group; those without a group are named one by one."""
    if group and group not in OWN:
        return [f"{group}*"]
    return [_literal(name) for name, code in sorted(codes.items()) if not Code.rare([code])]
