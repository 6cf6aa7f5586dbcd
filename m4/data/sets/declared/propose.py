"""A first definition of a folder of CSV or Parquet tables, for `python -m m4.data draft`.

Guesses whose rows a file's are, which files are long (one event a row), which columns are outcomes,
and says what it left out and why. It cannot know what is recorded only after the fact: a person has
to read it. Values are quoted only where ten subjects or more have them.
"""

import itertools
import json
import os
import re
from pathlib import Path
from typing import Literal

from m4 import specs
from m4.data.sets.declared import columns
from m4.data.sets.declared.columns import Column, Table
from m4.data.sets.declared.definition import ENDINGS, find
from m4.errors import DataError

SMALLEST = 10  # subjects, below which no value is quoted
MOST = 60  # features of one series
FEW = 20  # values of a column of categories, and classes
SENTENCE = 3  # words of a cell, on average, from which on it is text
SUBJECT = (
    "patient",
    "subject",
    "person",
    "participant",
    "mrn",
    "hadm",
    "stay",
    "pid",
    "case",
    "id",
)
CODE = re.compile(r"code|item|test|variable|param|concept|drug|event|analyte|measure", re.I)
VALUE = re.compile(r"value|result|amount|dose|number|level", re.I)
OUTCOMES = re.compile(r"outcome|label|target|endpoint", re.I)
OUTCOME = re.compile(
    r"(^|_)(death|dead|died|dies|expired|expire|mortality|deceased|outcome|label|target|y|aki|sepsis"
    r"|readmi\w*|surviv\w*|los|discharge\w*|relapse\w*|event)(_|$)|length_of_stay|(?<!age_)(?<!\w)days$",
    re.I,
)


def draft(root: Path) -> list[str]:
    """A definition in TOML, line by line. Raises DataError if there is nothing to draft from."""
    tables = _tables(root)
    subject = _subjects(tables)
    strangers = [table.files for table in tables if not table.subject]
    tables = [table for table in tables if table.subject]
    proposal = Proposal(tables)
    text = json.dumps  # a JSON string is a TOML string
    name = root.resolve().name
    out = [
        "# A draft: check every modality for what is known only after the prediction time.",
        f"name = {text(name)}",
        f"folder = {text(name)} # below --config.data.raw_dir={root.resolve().parent}",
        "",
        "[window]",
        "hours = 24 # before the prediction time, if there is one",
        *proposal.lines(),
    ]
    for files in strangers:
        out += ["", f"# Left out: {files} has no column with the subjects of {subject}"]
    return [line if line.isprintable() else repr(line) for line in out]


class Proposal:
    """The parts of a definition, from looked-at tables that all know their subject."""

    def __init__(self, tables: list[Table]):
        self._tables = tables
        self._left: dict[str, list[str]] = {}  # reason -> columns
        self._taken: set[str] = set()  # names of modalities
        self._outcomes = {id(table): self._tasks_of(table) for table in tables}
        if any(OUTCOMES.search(t.files) and self._outcomes[id(t)] for t in tables):
            for table in tables:  # a file of outcomes has them all
                if not OUTCOMES.search(table.files):
                    self._leave("looks like an outcome", table, self._outcomes[id(table)])
                    self._outcomes[id(table)] = []
        names = [n for t in tables for n in {*t.columns} - {t.subject}]
        self._twice = {name for name in names if names.count(name) > 1}

    def lines(self) -> list[str]:
        """Sources, tasks, modalities, what was left out, and how to train on it."""
        sources, modalities = [], []
        for table in self._tables:
            source, made = (self._long if _code(table) else self._wide)(table)
            if made:
                sources += ["", *source]
                modalities += made
        tasks, selected = self._tasks()
        out = [*sources, *tasks, *modalities]
        for reason, names in self._left.items():
            out += ["", f"# Left out, {reason}: {', '.join(names)}"]
        if not modalities:
            out += ["", "# No column was found to predict from."]
        out += ["", "# m4-moe --config=own --workdir=runs/own --set data.options.file=THIS_FILE \\"]
        select = selected or "TASK/METRIC"
        return [*out, f"#   --set data.raw_dir=FOLDER_ABOVE --set train.select={select}"]

    def _leave(self, reason: str, table: Table, found: list[Column]) -> None:
        if found:
            names = (f"{c.name!r} of {table.files}" for c in found)
            self._left.setdefault(reason, []).extend(names)

    def _tasks_of(self, table: Table) -> list[Column]:
        """The outcomes among a table's columns: of a file that is called so, all it can be."""
        if table.per_subject() > 1.5 and not OUTCOMES.search(table.files):
            return []
        every = OUTCOMES.search(table.files)
        found = [c for c in table.rest() if c.filled and (every or OUTCOME.search(c.name))]
        return [c for c in found if _kind(c)]

    def _tasks(self) -> tuple[list[str], str]:
        text, out, selected, names = json.dumps, [], "", set()
        for table in self._tables:
            asked = _asked(table) if OUTCOMES.search(table.files) else ""
            for column in self._outcomes[id(table)]:
                kind, name = _kind(column), _free(column.name, names)
                out += ["", f"[tasks.{name}]", f"kind = {text(kind)}"]
                out += [f"labels = {text(table.files)}", f"column = {text(column.name)}"]
                out += [f"subject = {text(table.subject)}"]
                out += [f"time = {text(asked)}"] if asked else []
                if kind == "multiclass":
                    out.append(f"classes = {text(column.often(SMALLEST))}")
                if kind == "regression" and _skewed(column):
                    out.append('transform = "log1p"')
                if kind:
                    selected = selected or f"{name}/{specs.METRICS[kind][0]}"
        if not out:
            out = ["", "# No column looks like an outcome. Say which one is:"]
            out += ["# [tasks.death]", '# kind = "binary"', '# labels = "FILE"']
            out += ['# column = "COLUMN"', '# subject = "SUBJECT"']
        return out, selected

    def _long(self, table: Table) -> tuple[list[str], list[str]]:
        """A file of one event a row: a series of its numbers, codes or words of the others."""
        text, code, when = json.dumps, _code(table), _asked(table)
        value, words = _value(table, code), _words(table, code)
        prefix = f"{_stem(table)}//" if code in self._twice else ""
        source = ["[[events]]", f"files = {text(table.files)}", f"subject = {text(table.subject)}"]
        source += [f"time = {text(when)}"] if when else []
        source += [f"code = {text(code)}"]
        source += [f"value = {text(value)}"] if value else []
        source += [f"text = {text(words)}"] if words else []
        source += [f"prefix = {text(prefix)}"] if prefix else []
        held = {n: v for n, v in columns.codes(table, code, value).items() if v[0] >= SMALLEST}
        held = {
            n: v for n, v in held.items() if not OUTCOME.search(n) and not specs.text_problem(n)
        }
        ranked = sorted(held, key=lambda name: (-held[name][0], name))
        numbers = [name for name in ranked if held[name][1] >= 0.5][:MOST]
        others = [name for name in ranked if held[name][1] < 0.5]
        out = []
        if numbers:
            features = {name: prefix + _literal(name) for name in numbers}
            out += self._modality(_stem(table), "series" if when else "table", features, timed=when)
        if others and words and not out:
            out += ["", f"[modalities.{_free(f'{_stem(table)} text', self._taken)}]"]
            out += ['kind = "text"', f"codes = {text([prefix + _literal(n) for n in others])}"]
        elif others:
            codes = (
                [f"{prefix}*"] if prefix and not numbers else [prefix + _literal(n) for n in others]
            )
            out += ["", f"[modalities.{_free(_stem(table), self._taken)}]", 'kind = "codes"']
            out += [f"codes = {text(codes)}"]
        used = {code, value, words, when}
        self._leave(
            "no use of it was found", table, [c for c in table.rest() if c.name not in used]
        )
        return source, out

    def _wide(self, table: Table) -> tuple[list[str], list[str]]:
        """A file of wide rows: a series if subjects come again with a time, else a table."""
        text, when = json.dumps, _asked(table)
        again = bool(when) and table.per_subject() > 1.5
        when = when if again else ""  # what is written once holds whenever
        source = ["[[rows]]", f"files = {text(table.files)}", f"subject = {text(table.subject)}"]
        source += [f"time = {text(when)}"] if when else []
        prefix = f"{_stem(table)}//" if self._twice & {*table.columns} - {table.subject} else ""
        source += [f"prefix = {text(prefix)}"] if prefix else []
        outcomes = self._outcomes[id(table)]
        left = [c for c in table.rest() if c not in outcomes and c.name != when]
        later = [c for c in left if OUTCOME.search(c.name)]
        self._leave("looks like an outcome", table, [c for c in later if not self._said(c, table)])
        features, out = {}, []
        for column in (c for c in left if c not in later):
            code = prefix + _literal(column.name)
            if why := _useless(column, again=again):
                self._leave(why, table, [column])
            elif column.pictures:
                out += ["", f"[modalities.{_free(column.name, self._taken)}]", 'kind = "image"']
                out += [f"codes = {text(code)}", "size = 64"]
            elif column.numeric:
                features[column.name] = code
            elif len(column.counts) <= FEW:
                known = column.often(SMALLEST)
                shown = known[:1] if len(column.counts) == len(known) == 2 else known
                features[column.name] = {"codes": code, "values": shown, "known": known}
            else:
                out += ["", f"[modalities.{_free(column.name, self._taken)}]", 'kind = "text"']
                out += [f"codes = {text(code)}"]
        kind, made = "series" if again else "table", []
        for group in columns.together([table.columns[name] for name in features]):
            own = {c.name: features[c.name] for c in group}
            name = _stem(table) if not made else f"{_stem(table)} {group[0].name}"
            made += self._modality(name, kind, own, timed=when)
        return source, made + out

    def _said(self, column: Column, table: Table) -> bool:
        return any(f"{column.name!r} of {table.files}" in names for names in self._left.values())

    def _modality(self, name: str, kind: str, features: dict, *, timed: str) -> list[str]:
        out = ["", f"[modalities.{_free(name, self._taken)}]", f'kind = "{kind}"']
        out += ["every = 1 # hours", 'take = "mean"', "length = 48"] if timed else []
        out.append(f"[{out[1][1:-1]}.features]")
        return out + [f"{json.dumps(key)} = {_toml(value)}" for key, value in features.items()]


def _tables(root: Path) -> list[Table]:
    """The files below a folder; several with the same header and one pattern are one table."""
    paths = [p for p in find(root, ".") if p.is_file()]
    if not paths:
        raise DataError(f"{root}: no files that end in {', '.join(ENDINGS)}")
    looked = [columns.read(path, path.relative_to(root).as_posix()) for path in paths]
    out: list[Table] = []
    for _, group in itertools.groupby(looked, key=lambda t: (t.path.parent, [*t.columns])):
        alike = [*group]
        names = [table.files for table in alike]
        start = os.path.commonprefix(names)
        end = os.path.commonprefix([name[::-1] for name in names])[::-1]
        pattern = f"{start}*{end}"
        if len(alike) > 1 and start and find(root, pattern) == [t.path for t in alike]:
            alike[0].files = pattern
            alike = alike[:1]
        out += alike
    return [table for table in out if table.rows and len(table.columns) > 1]


def _subjects(tables: list[Table]) -> str:
    """Finds each table's column of subjects; returns the name that most have."""

    def score(name: str) -> tuple:
        having = [t for t in tables if name in t.columns and _may_be_subject(t, t.columns[name])]
        words = [k for k in range(len(SUBJECT)) if SUBJECT[k] in name.lower()]
        return len(having) if words or len(having) > 1 else 0, -min(words, default=99)

    names = dict.fromkeys(name for table in tables for name in table.columns)
    best = max(names, key=score, default="")
    if not best or not score(best)[0]:
        raise DataError("no column looks like the subject (patient, subject_id, ...); rename it so")
    known: set[str] = set()
    for table in tables:
        if best in table.columns and _may_be_subject(table, table.columns[best]):
            table.subject = best
            known |= {_plain(value) for value in table.columns[best].counts}
    for table in tables:  # the same subjects under another name
        shares = {
            c.name: sum(_plain(v) in known for v in c.counts) / len(c.counts)
            for c in table.columns.values()
            if _may_be_subject(table, c)
        }
        if not table.subject and shares and max(shares.values()) >= 0.5:
            table.subject = max(shares, key=lambda name: shares[name])
    return best


def _may_be_subject(table: Table, column: Column) -> bool:
    return (
        len(column.counts) > 1
        and not column.time
        and (column.whole or not column.numeric)
        and column.filled >= 0.9 * table.rows
        and column.words < SENTENCE
    )


def _plain(value: str) -> str:
    return re.sub(r"\.0+$", "", value)


def _code(table: Table) -> str:
    """The column of codes of a long file; '' for a wide one."""
    if table.per_subject() <= 1.5:
        return ""
    found = [
        c
        for c in table.rest()
        if not c.time
        and c.words < SENTENCE
        and (not c.numeric or (c.whole and CODE.search(c.name)))
        if len(c.counts) > 1 and len(c.counts) <= table.rows / 5
    ]
    numbers = [c for c in table.rest() if c.numeric and c not in found]
    named = [c for c in found if CODE.search(c.name)]
    if named and (len(numbers) <= 2 or any(VALUE.search(c.name) for c in numbers)):
        return named[0].name
    return found[0].name if found and len(numbers) <= 1 else ""


def _value(table: Table, code: str) -> str:
    numbers = [c for c in table.rest() if c.numeric and c.name != code]
    named = [c for c in numbers if VALUE.search(c.name)]
    return (named or numbers)[0].name if numbers else ""


def _words(table: Table, code: str) -> str:
    """The column of longer texts of a long file."""
    found = [c for c in table.rest() if not c.numeric and not c.time and c.name != code]
    return max(found, key=lambda c: c.words).name if any(c.words >= SENTENCE for c in found) else ""


def _asked(table: Table) -> str:
    """The first column of times that is no outcome."""
    times = [c.name for c in table.rest() if c.time and not OUTCOME.search(c.name)]
    return times[0] if times else ""


def _kind(column: Column) -> Literal["", "binary", "regression", "multiclass"]:
    """What kind of task a column of outcomes is; '' for what is none."""
    if column.time or not column.filled or len(column.counts) < 2 or column.words >= SENTENCE:
        return ""
    if column.yes_no:
        return "binary"
    if column.numeric and not (column.whole and len(column.counts) <= SMALLEST):
        return "regression"
    return "multiclass" if 2 <= len(column.often(SMALLEST)) <= FEW else ""


def _skewed(column: Column) -> bool:
    values = sorted(float(v) for v, n in column.counts.items() for _ in range(n))
    mean, middle = sum(values) / len(values), values[len(values) // 2]
    return values[0] >= 0 and mean > 1.3 * middle


def _useless(column: Column, *, again: bool) -> str:
    """Why a column is no feature; '' if it is one."""
    if specs.text_problem(column.name):
        return "its name cannot be printed"
    if column.time:
        return "a time"
    if len(column.counts) < 2:
        return "always the same"
    if column.numeric or column.pictures:
        return ""
    if again:
        return "words that change with time; a file of codes could have them"
    if len(column.counts) <= FEW:
        return "" if column.often(SMALLEST) else "no value that ten have"
    return "" if column.words >= SENTENCE / 2 else "many different words: an identifier?"


def _stem(table: Table) -> str:
    return Path(table.files).name.partition(".")[0].replace("*", "")


def _free(name: str, taken: set[str]) -> str:
    """A bare key of TOML that is not taken yet."""
    key = re.sub(r"[^A-Za-z0-9_]+", "_", name.lower()).strip("_")[:40] or "events"
    key = next(k for n in itertools.count(1) if (k := f"{key}_{n}" if n > 1 else key) not in taken)
    taken.add(key)
    return key


def _literal(code: str) -> str:
    return f"re:{re.escape(code)}" if "*" in code or "?" in code else code


def _toml(value: str | dict) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return f"{{ {', '.join(f'{key} = {json.dumps(v)}' for key, v in value.items())} }}"
