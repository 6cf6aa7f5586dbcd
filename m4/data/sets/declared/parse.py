"""The content of a definition -> a checked `Definition`."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4.data.sets.declared import wording
from m4.data.sets.declared.definition import (
    KINDS,
    MEDS_EVENTS,
    MEDS_LABELS,
    TAKES,
    TASK_COLUMN,
    TASK_KINDS,
    TOKENS,
    Definition,
    Feature,
    Group,
    Modality,
    Source,
    Splits,
    Task,
)
from m4.data.sets.declared.keys import Keys
from m4.errors import ConfigError
from m4.specs import LONGEST, ModalitySpec, TaskSpec

MOST_SPANNED = 200_000  # columns that a few characters may ask for


def parse(content: Mapping[str, Any], file: str, *, meds: bool) -> Definition:
    """Checks a definition and gives it its defaults; `meds` adds those of the MEDS schemas.

    Raises ConfigError with one line per problem, each naming the key.
    """
    problems: list[str] = []
    root = Keys(content, file, "", problems)
    window = root.section("window")
    hours = window.number("hours", 24.0)
    lookback, zero = window.hours("lookback", hours), window.patterns("zero")
    window.finish()
    found = Definition(
        name=root.text("name", Path(file).stem),
        licence=root.text("licence", "as granted by the owner of the source data"),
        where=root.text("where", "put the files there, or set folder in the definition"),
        folder=root.text("folder", "."),
        hours=hours,
        zero=zero,
        sources=_sources(root, meds=meds),
        modalities=tuple(
            _modality(name, keys, lookback, hours) for name, keys in root.sections("modalities")
        ),
        tasks=_tasks(root, meds=meds),
        splits=_splits(root.section("splits")),
        implausible=root.number("implausible", 0.05),
        about=wording.about(root.section("about")),
        groups=_groups(root),
    )
    root.finish()
    _check_places(root, found)
    _check_subjects(root, found)
    for what, items in (("modalities", found.modalities), ("tasks", found.tasks)):
        if not items:
            problems.append(f"{file}: has no [{what}.<name>]")
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    try:
        found.data_spec()
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    return found


def _check_places(root: Keys, found: Definition) -> None:
    """Every folder and file lies below the raw folder, however its name is written."""
    places = {"folder": [found.folder], "files": [s.files for s in found.sources]}
    places["labels"] = [t.files for t in found.tasks]
    for key, texts in places.items():
        for text in texts:
            if Path(text).is_absolute() or ".." in Path(text).parts or not text.isprintable():
                root.problem(key, f"{text!r} must be a path below --config.data.raw_dir")


def _check_subjects(root: Keys, found: Definition) -> None:
    """Rows go by their number everywhere or nowhere: a number is no identifier of another file."""
    numbered = [(f"rows of {s.files}", s.number) for s in found.sources]
    numbered += [(f"labels of {t.spec.name}", not t.subject) for t in found.labelled]
    without = [what for what, by_number in numbered if by_number]
    if 0 < len(without) < len(numbered):
        root.problem(
            "subject",
            f"is missing for {', '.join(without)}, but not everywhere; without it rows go by their"
            " number, so name it everywhere or nowhere",
        )


def _sources(root: Keys, *, meds: bool) -> tuple[Source, ...]:
    found, default = [], MEDS_EVENTS if meds else {}
    tables = root.several("events")
    for keys in tables or ([Keys({}, "", "", [])] if meds else []):
        values = {key: keys.text(key, default.get(key, "")) for key in (*MEDS_EVENTS, "prefix")}
        keys.finish()
        for key in ("files", "subject", "code"):
            if not values[key]:
                keys.problem(key, "is missing")
        found.append(Source(**values))
    for keys in root.several("rows"):
        values: dict[str, Any] = {k: keys.text(k) for k in ("files", "subject", "time", "prefix")}
        header = keys.choice("header", "names", ("names", "positions"))
        keys.finish()
        if not values["files"]:
            keys.problem("files", "is missing")
        found.append(Source(**values, header=header, number=not values["subject"]))
    if not found:
        root.problem("events", "is missing: [[events]] for long files, [[rows]] for wide ones")
    return tuple(found)


def _modality(name: str, keys: Keys, lookback: float, hours: float) -> Modality:
    name = keys.name(name)
    kind: Any = keys.choice("kind", "", KINDS)
    values: dict[str, Any] = {"lookback": math.inf if kind == "table" else lookback}
    if keys.has("lookback"):
        values["lookback"] = keys.hours("lookback", hours)
    prefix = keys.text("prefix")
    keys.flag("on_request")  # heeded before, see `m4.data.sets.declared.dataset`
    if kind in TAKES:
        features, written = _features(keys, kind, prefix)
        names = tuple(feature.name for feature in features)
        shape = (len(names),)
        if kind == "series":
            every = values["every"] = keys.number("every", 1.0) if keys.has("every") else 0.0
            length = 128
            if every and math.isfinite(values["lookback"]):
                length = max(1, math.ceil(values["lookback"] / every))
            shape = (keys.count("length", length), *shape)
        said = wording.of_features(keys, written)
        keys.finish()
        return Modality(ModalitySpec(name, kind, shape, names, **said), features, **values)
    if kind == "image":
        return _image(name, keys, prefix, values)
    if kind not in TOKENS:
        return Modality(ModalitySpec(name, "codes", (1,), dtype="int32", vocab=1))
    codes = keys.patterns("codes", prefix)
    if not codes:
        keys.problem("codes", "is missing")
    length = keys.count("length", 128 if kind == "codes" else 256)
    vocab = keys.count("vocab", 1024, low=2)
    title = wording.text(keys, "title")
    spec = ModalitySpec(name, kind, (length,), dtype="int32", vocab=vocab, title=title)
    values["tokens"] = keys.choice("tokens", TOKENS[kind][0], TOKENS[kind])
    values["vocabulary"] = keys.choice("vocabulary", "train", ("train", "hashed"))
    values["min_subjects"] = keys.count("min_subjects", 10)
    values["repeat"] = keys.flag("repeat", kind == "text")
    values["levels"] = keys.text("levels") if kind == "codes" else ""
    keys.finish()
    return Modality(spec, (), codes, **values)


def _image(name: str, keys: Keys, prefix: str, values: dict[str, Any]) -> Modality:
    """Files named by the texts of events, below the folder."""
    codes = keys.patterns("codes", prefix)
    if not codes:
        keys.problem("codes", "is missing: the column, or the code, whose text names the file")
    views, size = keys.count("views", 1), keys.count("size", 64, low=8)
    channels = keys.count("channels", 1)
    if channels not in (1, 3):
        keys.problem("channels", "must be 1 (grey) or 3 (colour)")
    title = wording.text(keys, "title")
    keys.finish()
    spec = ModalitySpec(name, "image", (views, size, size, channels), dtype="uint8", title=title)
    return Modality(spec, (), codes, vocabulary="files", repeat=True, **values)


def _features(keys: Keys, kind: str, prefix: str):
    """The features, and by name as written (title, unit) of each that is made of it."""
    given = keys.raw("features")
    take = keys.choice("take", "last", TAKES[kind])
    if isinstance(given, str) and (span := re.fullmatch(r"(\d+)\.\.(\d+)", given)):
        first, last = span.groups()  # of '0..75'
        long = max(map(len, span.groups())) > 9 or int(last) - int(first) >= MOST_SPANNED
        if long:
            keys.problem("features", f"spans more than {MOST_SPANNED:,} columns")
        given = ["0"] if long else [str(i) for i in range(int(first), int(last) + 1)]
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        twice = sorted(name for name, count in Counter(given).items() if count > 1)
        if twice:
            keys.problem("features", f"names {', '.join(map(repr, twice))} twice")
        given = {name: name for name in given}
        for name in given:
            keys.feature(name)
    if not isinstance(given, Mapping) or not given:
        keys.problem("features", "must be a list of names or a table name = code pattern")
        return (Feature("missing", ("missing",), take),), {"missing": [("", "")]}
    found, written = [], {}
    inner = keys.section("features") if isinstance(keys.raw("features"), Mapping) else keys
    for name, value in given.items():
        own = inner.inside(name, value if isinstance(value, Mapping) else {"codes": value})
        made = _feature(name, own, kind, prefix, take)
        found += made
        written[name] = [(feature.title, feature.unit) for feature in made]
    return tuple(found), written


def _feature(name: str, own: Keys, kind: str, prefix: str, take: str) -> list[Feature]:
    """One feature, or one 0/1 feature per entry of `values`: code//value."""
    name = own.feature(name)
    chosen = own.choice("take", take, TAKES[kind])
    codes, among = own.patterns("codes", prefix), own.patterns("among", prefix)
    low, high = own.limit("low", -math.inf), own.limit("high", math.inf)
    values = own.words("values") if kind == "table" else ()
    known = own.words("known") or values
    title, unit = wording.text(own, "title"), wording.text(own, "unit")
    own.finish()
    if not codes:
        own.problem("codes", "is missing")
    if values:
        every = tuple(f"{code}//{value}" for code in codes for value in known)
        return [
            Feature(
                f"{name}={v}",
                tuple(f"{code}//{v}" for code in codes),
                "is",
                every,
                title=f"{title}: {v}"[:LONGEST] if title else "",
            )
            for v in values
        ]
    if (chosen == "is") != bool(among):
        own.problem("among", "goes with take = 'is', and only with it")
    return [Feature(name, codes, chosen, among, low, high, title, unit)]


def _groups(root: Keys) -> tuple[Group, ...]:
    """A list of columns, or a table name = code pattern; numbers may be cut into `bands`."""
    given = root.raw("groups")
    if isinstance(given, list):
        names = root.words("groups")
        return tuple(Group(n, (f"{n}//*",)) for n in map(root.inside("groups", {}).name, names))
    found = []
    inner = root.section("groups")
    for name, value in given.items() if isinstance(given, Mapping) else ():
        own = inner.inside(name, value if isinstance(value, Mapping) else {"codes": value})
        codes, bands = own.patterns("codes"), own.raw("bands") or []
        own.finish()
        numbers = isinstance(bands, list) and all(type(x) in (int, float) for x in bands)
        if not numbers or sorted({*bands}) != bands:
            own.problem("bands", "must list numbers that increase")
            bands = []
        if not codes:
            own.problem("codes", "is missing")
        found.append(Group(own.name(name), codes, tuple(bands)))
    return tuple(found)


def _tasks(root: Keys, *, meds: bool) -> tuple[Task, ...]:
    common = root.section("labels")
    shared = {key: common.text(key) for key in ("files", "subject", "time")}
    header = common.choice("header", "names", ("names", "positions"))
    unique = common.flag("unique")
    common.finish()
    default = MEDS_LABELS if meds else {}
    found = []
    for name, keys in root.sections("tasks"):
        name = keys.name(name)
        kind = keys.choice("kind", "", TASK_KINDS)
        keys.flag("on_request")
        files = keys.text("labels", shared["files"])
        standard = (TASK_COLUMN[kind],) if meds and kind in TASK_COLUMN else ()
        columns = keys.words("column") or standard
        subject = keys.text("subject", shared["subject"] or default.get("subject", ""))
        time = keys.text("time", shared["time"] or default.get("time", ""))
        spec = _task_spec(name, kind, keys, columns)
        keys.finish()
        if not files and kind != "cluster":
            keys.problem("labels", "is missing: a file, a folder or a pattern")
        if not columns and kind != "cluster":
            keys.problem("column", "is missing")
        if spec is not None:
            found.append(Task(spec, files, columns, subject, time, header, unique))
    return tuple(found)


def _task_spec(name: str, kind: Any, keys: Keys, columns: tuple[str, ...]) -> TaskSpec | None:
    given, numbers = keys.raw("classes"), keys.raw("days")
    options: dict[str, Any] = {
        "transform": keys.choice("transform", "none", ("none", "log1p")),
        "weight": keys.number("weight", 1.0),
        "auxiliary": keys.flag("auxiliary"),
        **wording.of_task(keys),
    }
    counts = {"binary": 1, "multiclass": 1, "regression": 1, "survival": 2, "cluster": 0}
    if columns and len(columns) != (one := counts.get(kind, len(columns))):
        keys.problem("column", f"a {kind} task has {one} of them, here are {len(columns)}")
    labels, dim = (), 1
    if kind == "multiclass":
        labels = tuple(map(str, given)) if isinstance(given, list) else ()
        labels = tuple(keys.feature(label) for label in labels)
        dim = len(labels)
        if len(set(labels)) < 2:
            keys.problem("classes", "must list at least two different values")
            return None
    elif kind == "multilabel":
        labels, dim = tuple(map(keys.feature, columns)), max(1, len(columns))
    elif kind == "survival":
        if not isinstance(numbers, list) or not numbers:
            keys.problem("days", "must list the right ends of the time intervals")
            return None
        labels, dim = tuple(f"{n:g}" for n in numbers), len(numbers)
    elif kind == "cluster":
        dim = keys.count("clusters", 0, low=2)
    elif not kind:
        return None
    return TaskSpec(name, kind, dim=dim, labels=labels, **options)


def _splits(keys: Keys) -> Splits:
    base = Splits()
    names, parts = keys.section("names"), keys.section("fractions")
    chosen = tuple((split, names.text(split, value)) for split, value in base.names)
    fractions = tuple((split, parts.limit(split, value)) for split, value in base.fractions)
    names.finish()
    parts.finish()
    if min(f for _, f in fractions) <= 0 or not math.isclose(sum(f for _, f in fractions), 1.0):
        keys.problem("fractions", "must be above 0 and sum to 1")
    found = Splits(
        keys.choice("from", base.source, ("auto", "meds", "hash", "folds", "all")),
        chosen,
        fractions,
        keys.number("val_fraction", base.val_fraction),
        keys.count("fold", 0, low=0),
        keys.count("num_folds", base.num_folds, low=2),
    )
    keys.finish()
    if found.val_fraction >= 1:
        keys.problem("val_fraction", "must be below 1")
    if found.fold >= found.num_folds:
        keys.problem("fold", f"must be below num_folds={found.num_folds}")
    return found
