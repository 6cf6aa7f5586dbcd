"""A first definition of a folder of CSV or Parquet tables, for `python -m m4.data draft`.

Guesses whose rows a file's are, which files are long (one event a row), which columns are outcomes,
and says what it left out and why. It cannot know what is recorded only after the fact: a person has
to read it. Values are quoted only where ten subjects or more have them.
"""

import collections
import itertools
import json
import os
import re
from pathlib import Path
from typing import Literal

from m4 import specs
from m4.data.sets.declared import columns
from m4.data.sets.declared.arrow_files import NotCommas
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
    r"(^|_)(dies|outcome|label|target|y|aki|sepsis|readmi\w*|surviv\w*|los|discharge\w*|relapse\w*|event)(_|$)|length_of_stay|(?<!age_)(?<!\w)days$",
    re.I,
)
DEATH = re.compile(  # anywhere in a name, but not in other words: dead space, studied, amortised
    r"death|dead(?!_?(space|line))|(?<!stu)(?<!bo)(?<!reme)died|deceas|expire"
    r"|(?<![a-z])dod(?![a-z])|(?<!a)(?<!im)mort(?!ar|g)"
)
ZONES = "times, some with a zone and some without: write all alike"
ISO = "write YYYY-MM-DD HH:MM"
FEW_EMPTY = 0.02  # share of the rows whose prediction time may lack
OTHER_FILES = re.compile(r"\.(tsv|tab|xlsx?)(\.gz)?$", re.I)


def draft(root: Path) -> list[str]:
    """A definition in TOML, line by line. Raises DataError if there is nothing to draft from."""
    tables, dropped = _tables(root)
    subject = _subjects(tables)
    strangers = [table.files for table in tables if not table.subject]
    tables = [table for table in tables if table.subject]
    for table in tables:
        columns.count_subjects(table)
    proposal, text = Proposal(tables), _quoted
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
    for why in dropped:
        out += ["", f"# Left out: {why}"]
    return [line if line.isprintable() else f"# {line!r}" for line in out]


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
        self._asked = {id(t): _prediction_time(t) for t in tables if self._outcomes[id(t)]}
        self._held = {}  # codes of long files, see `columns.codes`
        for table in tables:
            if code := _code(table):
                value = _value(table, code)
                self._held[id(table)] = columns.codes(table, code, value.name if value else "")
        self._prefixes = self._clashes()

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

    def _clashes(self) -> dict[int, str]:
        """Prefixes of the sources that share a name, be it a column's or a code's."""
        names = {
            id(t): {*self._held.get(id(t), {*t.columns} - {t.subject, _asked(t)})}
            for t in self._tables
        }
        count = collections.Counter(name for own in names.values() for name in own)
        stems: set[str] = set()
        out = {}
        for table in self._tables:
            if any(count[name] > 1 for name in names[id(table)]):
                stem = re.sub(r"[*?:]", "", _stem(table))
                ways = (f"{stem}-{n}" if n > 1 else stem for n in itertools.count(1))
                stems.add(free := next(way for way in ways if way not in stems))
                out[id(table)] = f"{free}//"
        return out

    def _leave_codes(self, reason: str, table: Table, count: int, *names: str) -> None:
        """Says how many codes are left out, and `names` of those that may be named."""
        if count:
            said = f" ({', '.join(map(repr, names[:FEW]))})" if names else ""
            what = f"{count} code{'s' * (count > 1)} of {table.files}{said}"
            self._left.setdefault(reason, []).append(what)

    def _leave(self, reason: str, table: Table, found: list[Column]) -> None:
        if found:
            names = (f"{c.name!r} of {table.files}" for c in found)
            self._left.setdefault(reason, []).extend(names)

    def _tasks_of(self, table: Table) -> list[Column]:
        """The outcomes among a table's columns: of a file that is called so, all it can be."""
        if table.per_subject() > 1.5 and not OUTCOMES.search(table.files):
            return []
        every = OUTCOMES.search(table.files)
        found = [c for c in table.rest() if c.filled and (every or _outcome(c.name))]
        return [c for c in found if _kind(c)]

    def _tasks(self) -> tuple[list[str], str]:
        text, out, selected, names = _quoted, [], "", set()
        for table in self._tables:
            asked = self._asked.get(id(table), "")
            for column in self._outcomes[id(table)]:
                kind, name = _kind(column), _free(column.name, names)
                out += ["", f"[tasks.{name}]", f"kind = {text(kind)}"]
                out += [f"labels = {text(table.files)}", f"column = {text(column.name)}"]
                out += [f"subject = {text(table.subject)}"]
                out += [f"time = {text(asked)}{_no_times(table, asked)}"] if asked else []
                if kind == "multiclass":
                    out.append(f"classes = {_toml(column.often(SMALLEST))}")
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
        text, code, when = _quoted, _code(table), _asked(table)
        value, words = _value(table, code), _words(table, code)
        prefix = self._prefixes.get(id(table), "")
        source = ["[[events]]", f"files = {text(table.files)}", f"subject = {text(table.subject)}"]
        source += [f"time = {text(when)}{_no_times(table, when)}"] if when else self._always(table)
        source += [f"code = {text(code)}"]
        source += [f"value = {text(value.name)}{_no_numbers(value)}"] if value else []
        source += [f"text = {text(words)}"] if words else []
        source += [f"prefix = {text(prefix)}"] if prefix else []
        numbers, others = self._codes(table)
        out = []
        if numbers:
            features = {name: _literal(prefix + name) for name in numbers}
            out += self._modality(_stem(table), "series" if when else "table", features, timed=when)
        if others and words and not out:
            out += ["", f"[modalities.{_free(f'{_stem(table)} text', self._taken)}]"]
            out += ['kind = "text"', f"codes = {_toml([_literal(prefix + n) for n in others])}"]
        elif others:
            codes = [_literal(prefix + name) for name in others]
            out += ["", f"[modalities.{_free(_stem(table), self._taken)}]", 'kind = "codes"']
            out += [f"codes = {_toml(codes)}"]
        used = {code, value.name if value else "", words, when, self._asked.get(id(table), "")}
        used |= {column.name for column in self._outcomes[id(table)]}
        for column in (c for c in table.rest() if c.name not in used):
            self._leave(_unread(column) or "no use of it was found", table, [column])
        return source, out

    def _always(self, table: Table) -> list[str]:
        """A comment on events without a time, if there is a time before which they should lie."""
        when = _asked(table)
        if not any(self._asked.values()) or when == self._asked.get(id(table)):
            return []
        if when:
            key = f"time = {_quoted(when)}"
            return [f"# {key} # if what a row holds may be later than the prediction time"]
        if table.per_subject() <= 1.5:
            return []
        said = repr(table.files)[1:-1]
        return [f"# {said} has no time: all its events count, also those after the prediction time"]

    def _codes(self, table: Table) -> tuple[list[str], list[str]]:
        """The codes of a long file with numbers and those without, most subjects first."""
        every = self._held[id(table)]
        held = {name: found for name, found in every.items() if found[0] >= SMALLEST}
        self._leave_codes(f"fewer than {SMALLEST} subjects", table, len(every) - len(held))
        odd = [name for name in held if specs.text_problem(name)]
        self._leave_codes("its name cannot be printed", table, len(odd))
        later = [name for name in held if name not in odd and _outcome(name)]
        self._leave_codes("looks like an outcome", table, len(later), *later)
        ranked = [name for name in held if name not in {*odd, *later}]
        ranked.sort(key=lambda name: (-held[name][0], name))
        numbers = [name for name in ranked if held[name][1] >= 0.5]
        beyond = numbers[MOST:]
        self._leave_codes(f"beyond the {MOST} most frequent", table, len(beyond), *beyond)
        return numbers[:MOST], [name for name in ranked if held[name][1] < 0.5]

    def _wide(self, table: Table) -> tuple[list[str], list[str]]:
        """A file of wide rows: a series if subjects come again with a time, else a table."""
        text, when = _quoted, _asked(table)
        again = bool(when) and table.per_subject() > 1.5
        when = when if again else ""  # what is written once holds whenever
        source = ["[[rows]]", f"files = {text(table.files)}", f"subject = {text(table.subject)}"]
        source += [f"time = {text(when)}{_no_times(table, when)}"] if when else self._always(table)
        prefix = self._prefixes.get(id(table), "")
        source += [f"prefix = {text(prefix)}"] if prefix else []
        outcomes = self._outcomes[id(table)]
        used = {when, self._asked.get(id(table), ""), *(c.name for c in outcomes)}
        left = [c for c in table.rest() if c.name not in used]
        later = [c for c in left if _outcome(c.name)]
        self._leave("looks like an outcome", table, [c for c in later if not self._said(c, table)])
        features, out = {}, []
        for column in (c for c in left if c not in later):
            code = _literal(prefix + column.name)
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
        return out + [f"{_quoted(key)} = {_toml(value)}" for key, value in features.items()]


def _tables(root: Path) -> tuple[list[Table], list[str]]:
    """The files below a folder, and why some are of no use.

    Several with the same header and one pattern are one table.
    """
    paths = [p for p in find(root, ".") if p.is_file()]
    if not paths:
        raise DataError(f"{root}: no files that end in {', '.join(ENDINGS)}")
    looked, dropped = [], []
    for path in paths:
        try:
            looked.append(columns.read([path], path.relative_to(root).as_posix()))
        except NotCommas as error:
            dropped.append(str(error).removeprefix(f"{root}/").replace(":", "", 1))
    out: list[Table] = []
    for _, group in itertools.groupby(looked, key=lambda t: (t.paths[0].parent, [*t.columns])):
        alike = [*group]
        names = [table.files for table in alike]
        start = os.path.commonprefix(names)
        end = os.path.commonprefix([name[::-1] for name in names])[::-1]
        pattern = f"{start}*{end}"
        paths = [table.paths[0] for table in alike]
        if len(alike) > 1 and (start or end) and find(root, pattern) == paths:
            alike = [columns.read(paths, pattern)]
        out += alike
    dropped += [
        f"{table.files} has {'one column' if table.rows else 'no rows'}"
        for table in out
        if not table.rows or len(table.columns) < 2
    ]
    others = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    dropped += [
        f"{name} is none of {', '.join(ENDINGS)}" for name in others if OTHER_FILES.search(name)
    ]
    out = [table for table in out if table.rows and len(table.columns) > 1]
    if not out:
        raise DataError(f"{root}: {dropped[0]}")
    return out, dropped


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
        and not column.dated
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
        if not (c.dated or _some_value(c))
        and c.words < SENTENCE
        and (not c.numeric or (c.whole and CODE.search(c.name)))
        if len(c.counts) > 1 and len(c.counts) <= table.rows / 5
    ]
    numbers = [c for c in table.rest() if (c.numeric or _some_value(c)) and c not in found]
    named = [c for c in found if CODE.search(c.name)]
    if named and (len(numbers) <= 2 or any(VALUE.search(c.name) for c in numbers)):
        return named[0].name
    return found[0].name if found and len(numbers) <= 1 else ""


def _some_value(column: Column) -> bool:
    """Whether it is called a value and is a number in at least half its cells, not in all."""
    return bool(VALUE.search(column.name)) and column.mostly and not column.numeric


def _value(table: Table, code: str) -> Column | None:
    """The column of numbers of a long file: one called so first, even if some cells are none."""
    rest = [c for c in table.rest() if c.name != code]
    numbers = [c for c in rest if c.numeric]
    named = [c for c in numbers if VALUE.search(c.name)]
    return next(iter([*named, *filter(_some_value, rest), *numbers]), None)


def _no_numbers(value: Column) -> str:
    """A comment on the cells at which the build would stop; '' if there are none."""
    count = value.filled - value.numbers
    what = (
        f"{count:,} of {value.filled:,} cells looked at {'is' if count == 1 else 'are'} no number"
    )
    return f" # {what}: the build stops at the first; empty it or write a number" if count else ""


def _unread(column: Column) -> str:
    """Why a column of times cannot be read as it is; '' if it can or is none."""
    if column.mixed:
        return ZONES
    cells = f"{column.unread:,} cell{'s' * (column.unread > 1)}"
    return f"times that cannot be read ({cells}; {ISO})" if column.unread else ""


def _no_times(table: Table, name: str) -> str:
    """A comment on times at which the build would stop; '' if there are none."""
    why = _unread(table.columns[name])
    return f" # {why}: the build stops at the first" if why else ""


def _words(table: Table, code: str) -> str:
    """The column of longer texts of a long file."""
    found = [c for c in table.rest() if not (c.numeric or c.dated) and c.name != code]
    return max(found, key=lambda c: c.words).name if any(c.words >= SENTENCE for c in found) else ""


def _asked(table: Table) -> str:
    """The first column of times that is no outcome; the build refuses it if it cannot be read."""
    times = [c.name for c in table.rest() if c.dated and not _outcome(c.name)]
    return times[0] if times else ""


def _prediction_time(table: Table) -> str:
    """When a file of outcomes asks: the first times that hardly any row lacks; '' for never."""
    if not OUTCOMES.search(table.files):
        return ""
    times = [c for c in table.rest() if c.dated and not _outcome(c.name)]
    full = [c.name for c in times if c.filled >= (1 - FEW_EMPTY) * table.rows]
    return full[0] if full else ""


def _outcome(name: str) -> bool:
    """Whether a column or code is called like an outcome, as inHospDeath or death_time."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return bool(OUTCOME.search(name) or DEATH.search(apart))


def _kind(column: Column) -> Literal["", "binary", "regression", "multiclass"]:
    """What kind of task a column of outcomes is; '' for what is none."""
    if column.dated or not column.filled or len(column.counts) < 2 or column.words >= SENTENCE:
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
    if why := _unread(column):
        return why
    if len(column.counts) < 2:
        return "always the same"
    if column.numeric or column.pictures:
        return ""
    if column.mostly and (again or len(column.counts) > FEW):
        return "numbers but for some cells, at which the build would stop: empty those"
    if again:
        return "words that change with time; a file of codes could have them"
    if len(column.counts) <= FEW:
        return "" if column.often(SMALLEST) else "no value that ten subjects have"
    return "" if column.words >= SENTENCE / 2 else "many different words: an identifier?"


def _stem(table: Table) -> str:
    return Path(table.files).name.partition(".")[0].replace("*", "") or "rows"


def _free(name: str, taken: set[str]) -> str:
    """A bare key of TOML that is not taken yet."""
    key = re.sub(r"[^A-Za-z0-9_]+", "_", name.lower()).strip("_")[:40] or "events"
    key = next(k for n in itertools.count(1) if (k := f"{key}_{n}" if n > 1 else key) not in taken)
    taken.add(key)
    return key


def _literal(code: str) -> str:
    """A pattern of this code alone."""
    special = "*" in code or "?" in code or code.startswith("re:")
    return f"re:{re.escape(code)}" if special else code


def _quoted(text: str) -> str:
    """A TOML string: JSON's, but beyond 16 bits TOML knows no pairs of escapes."""
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain)


def _toml(value: str | list | dict) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return f"{{ {', '.join(f'{key} = {_toml(v)}' for key, v in value.items())} }}"
