"""A data set declared in one TOML or JSON file: which events are which modality, and the tasks.

The language is described, key by key, in `docs/data.md`. Reading it needs the standard library
only, so a wrong file is refused before anything else is imported.
"""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

from m4.errors import ConfigError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

SHIPPED = Path(__file__).parent
DEEPEST = 50  # tables and lists in each other
ENDINGS = (".parquet", ".csv", ".csv.gz")
KINDS = ("series", "table", "codes", "text", "image")
TAKES = {  # how the events of one feature become one number
    "series": ("last", "first", "mean", "min", "max", "sum"),
    "table": ("last", "first", "mean", "min", "max", "sum", "count", "any", "is", "years_since"),
}
TASK_KINDS = ("binary", "multiclass", "regression", "multilabel", "survival", "cluster")
TOKENS = {"codes": ("code", "words"), "text": ("words", "phrases")}
TASK_COLUMN = {  # of the MEDS label schema
    "binary": "boolean_value",
    "regression": "float_value",
    "multiclass": "categorical_value",
}
SPLIT_NAMES = {"train": "train", "val": "tuning", "test": "held_out"}
MEDS_EVENTS = {
    "files": "data",
    "subject": "subject_id",
    "time": "time",
    "code": "code",
    "value": "numeric_value",
    "text": "text_value",
}
MEDS_LABELS = {"subject": "subject_id", "time": "prediction_time"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of events, or (`code` empty) of wide rows: a row is one event per column."""

    files: str
    subject: str
    time: str = ""
    code: str = ""
    value: str = ""
    text: str = ""
    prefix: str = ""
    header: str = "names"  # 'positions': columns are called 0, 1, ..., a first line is skipped
    number: bool = False  # wide rows without an identifier: the subject is the row's number


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of a series or table."""

    name: str
    codes: tuple[str, ...]
    take: str
    among: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    title: str = ""
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Modality:
    """One modality and the events that it is made of; hours count back from the prediction."""

    spec: ModalitySpec
    features: tuple[Feature, ...] = ()
    codes: tuple[str, ...] = ()
    lookback: float = math.inf
    every: float = 0.0
    tokens: str = ""
    vocabulary: str = "train"
    min_subjects: int = 10
    levels: str = ""
    repeat: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """One task and where its labels are; a cluster task has none."""

    spec: TaskSpec
    files: str
    columns: tuple[str, ...]
    subject: str
    time: str
    header: str = "names"
    unique: bool = False  # a label that comes twice is refused, even if it is the same


@dataclasses.dataclass(frozen=True)
class Group:
    """A column that says to which group of people a record belongs; beside the data, no input.

    The category is told by the last such code up to the prediction time: what stands behind the
    code of a column and `//`, or behind the last `//` before a pattern's `*`, or else behind the
    last of all; of a number the number, or its band between `bands`.
    """

    name: str
    codes: tuple[str, ...]
    bands: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Splits:
    """Who is in which split."""

    source: str = "auto"  # 'auto', 'meds', 'hash', 'folds', 'all': everybody trains
    names: tuple[tuple[str, str], ...] = tuple(SPLIT_NAMES.items())
    fractions: tuple[tuple[str, float], ...] = (("train", 0.7), ("val", 0.15), ("test", 0.15))
    val_fraction: float = 0.1
    fold: int = 0
    num_folds: int = 5


@dataclasses.dataclass(frozen=True)
class Definition:
    """A whole file."""

    name: str
    licence: str
    where: str
    folder: str
    hours: float
    zero: tuple[str, ...]
    sources: tuple[Source, ...]
    modalities: tuple[Modality, ...]
    tasks: tuple[Task, ...]
    splits: Splits
    implausible: float  # share of a feature's values outside low and high that is worth a warning
    about: About = About()
    groups: tuple[Group, ...] = ()

    @property
    def labelled(self) -> tuple[Task, ...]:
        """The tasks with labels."""
        return tuple(task for task in self.tasks if task.columns)

    def data_spec(self) -> DataSpec:
        """The schema of the records."""
        modalities = tuple(modality.spec for modality in self.modalities)
        tasks = tuple(task.spec for task in self.tasks)
        groups = tuple(group.name for group in self.groups)
        return DataSpec(modalities, tasks, self.hours, groups=groups, about=self.about)


def locate(file: str) -> Path:
    """The file itself, or the shipped definition of that name. ConfigError if there is none."""
    path = Path(file).expanduser()
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(SHIPPED.glob("*.toml"))}
    if file in shipped:
        return shipped[file]
    hint = ", ".join(shipped) or "none"
    if not file:
        raise ConfigError(
            "data.options.file: is missing, the definition (TOML) of your files, see docs/data.md;"
            f" shipped definitions: {hint}"
        )
    raise ConfigError(f"data.options.file={file!r}: no such file; shipped definitions: {hint}")


def load(file: str) -> dict[str, Any]:
    """The content of a definition. Raises ConfigError if it is neither TOML nor JSON, or deep."""
    path = locate(file)
    deep = f"{path}: has more than {DEEPEST} tables and lists in each other"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: is no readable {kind} file: {error}") from None
    except RecursionError:
        raise ConfigError(deep) from None
    if _is_deep(found):
        raise ConfigError(deep)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must be a table of keys")
    return found


def _is_deep(content: Any) -> bool:
    """Whether it is nested deeper than any definition: what reads it later may recurse."""
    level = [content]
    for _ in range(DEEPEST + 1):
        inner = [x.values() if isinstance(x, dict) else x for x in level]
        level = [item for one in inner for item in one if isinstance(item, dict | list)]
    return bool(level)


def find(root: Path, pattern: str) -> list[Path]:
    """The files below `root` that a file name, a folder (searched whole) or a glob stands for.

    Raises ConfigError for what is no glob.
    """
    path = root / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        places = path.rglob("*")
    else:
        places = root.glob(pattern)
    inside = (p for p in places if not any(x.startswith(".") for x in p.relative_to(root).parts))
    try:
        return sorted(p for p in inside if p.is_file() and p.name.endswith(ENDINGS))
    except ValueError:
        raise ConfigError(
            f"{pattern!r} is no pattern of files: ** stands alone, as in data/**/*.csv"
        ) from None
