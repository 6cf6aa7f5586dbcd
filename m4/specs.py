"""Static description of a data set: which modalities exist and which tasks are asked.

Everything here is hashable and free of JAX, so that a configuration can be checked and a
data set described before any accelerator library is imported.
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

ModalityKind = Literal["series", "vectors", "table", "codes", "text", "image", "signal"]
TaskKind = Literal[
    "binary", "multilabel", "multiclass", "regression", "segmentation", "cluster", "survival"
]
TIMED_KINDS = ("series", "vectors")
PROBABILITY = ("brier", "ece", "log_loss")  # of predicted probabilities
METRICS: dict[TaskKind, tuple[str, ...]] = {  # without a threshold chosen elsewhere
    "binary": ("auroc", "auprc", "min_se_ppv", "f1", *PROBABILITY),
    "multilabel": tuple(
        f"{metric}_{how}" for metric in ("auroc", "auprc", "f1") for how in ("macro", "micro")
    )
    + PROBABILITY,
    "multiclass": ("auroc_macro", "f1_macro", "accuracy", *PROBABILITY),
    "regression": ("mae", "rmse", "r2", "spearman"),
    "survival": ("c_index",),
    "segmentation": ("dice",),
}
LOWER_IS_BETTER = (*PROBABILITY, "calibration_error", "mae", "rmse")
RAGGED_KINDS = ("series", "vectors", "codes", "text")  # of a length that differs by row
# Of modalities, tasks, groups: they become parts of file names, headings and options.
NAME = re.compile(r"\w(?:[\w .,+=()-]{0,62}[\w)+])?")
KEYS = ("subject_id", "prediction_time")  # MEDS's columns beside predictions
BYTES = 180  # of such a name: file systems take 255 for a file's, with an ending and a mark
LONGEST = 200  # characters of a feature's or label's name, which may be whatever data call it
LONGEST_WORDS = 2000  # characters of a definition, or of a text of `About`


def name_problem(name: object) -> str | None:
    """Why a text is no name of a modality, task or group, in words that follow it; else None."""
    if isinstance(name, str) and NAME.fullmatch(name) and len(name.encode()) <= BYTES:
        return None
    return (
        "is no name: 1 to 64 letters, digits and _ . , + = ( ) - or blanks, of which the first is a"
        f" letter, digit or _, and the last no point or blank, and at most {BYTES} bytes"
    )


def text_problem(text: object) -> str | None:
    """Why a text is no name of a feature, label or class, in words that follow it; else None."""
    if isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable():
        return None
    return f"is no name: 1 to {LONGEST} characters that can be printed"


def words_problem(text: object, most: int = LONGEST) -> str | None:
    """Why a title, unit or definition is none, in words that follow it; else None ('' is right)."""
    if isinstance(text, str) and len(text) <= most and (not text or text.isprintable()):
        return None
    return f"must be text of at most {most} characters that can be printed"


def file_name(name: str) -> str:
    """A name that data chose as a file's name: what no `NAME` has is `%` and its bytes.

    Of one that is too long for a file system the end is a digest.
    """
    safe = re.compile(r"[\w .,+=()-]")
    coded = (c if safe.fullmatch(c) else "".join(f"%{b:02x}" for b in c.encode()) for c in name)
    text = "".join(coded)
    text = f"%2e{text[1:]}" if text.startswith(".") else text
    if len(text.encode()) <= BYTES:
        return text
    end = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f"{text.encode()[: BYTES - 13].decode(errors='ignore')}~{end}"


def _check_names(what: str, name: str, texts: tuple[str, ...]) -> None:
    """Raises ValueError for a wrong name, or a wrong name of a feature or label of it."""
    if wrong := name_problem(name):
        raise ValueError(f"{what} {name!r} {wrong}")
    for text in texts:
        if wrong := text_problem(text):
            raise ValueError(f"{what} {name}: {text!r} {wrong}")


def _check_words(what: str, *texts: str, definition: str = "") -> None:
    """Raises ValueError for titles, units or a definition that cannot be printed."""
    for text, most in (*((text, LONGEST) for text in texts), (definition, LONGEST_WORDS)):
        if wrong := words_problem(text, most):
            raise ValueError(f"{what}: {str(text)[:LONGEST]!r} {wrong}")


def _check_outputs(tasks: "Sequence[TaskSpec]") -> None:
    """Raises ValueError where two outputs, or an output and a key, would be one column or file."""
    columns, files = Counter[str](KEYS), Counter[str]()
    for task in (task for task in tasks if task.kind not in ("segmentation", "cluster")):
        names = task.labels or tuple(map(str, range(task.dim)))
        many = task.kind in ("multilabel", "multiclass") or task.dim > 1
        heads = [f"{task.name}/{name}" for name in names] if many else [task.name]
        labelled = [task.name] if task.kind == "multiclass" else heads
        columns.update([*heads, *(f"{head}/label" for head in labelled)])
        apart = task.kind == "multilabel"
        files.update([file_name(f"{task.name}-{n}") for n in names] if apart else [task.name])
    for what, counted in (("column", columns), ("file", files)):
        if twice := next((name for name, number in counted.items() if number > 1), None):
            raise ValueError(
                f"names of tasks and labels: predictions would have two {what}s called {twice!r};"
                " call a task or a label otherwise"
            )


@dataclasses.dataclass(frozen=True)
class ModalitySpec:
    """One modality and the shape of one padded row of it.

    | kind    | shape        | values                  | mask    | times | observed   |
    |---------|--------------|-------------------------|---------|-------|------------|
    | series  | (T, f)       | float32 measurements    | bool[T] | f32[T]| bool[T, f] |
    | vectors | (T, d)       | float32 embeddings      | bool[T] | f32[T]| -          |
    | table   | (f,)         | float32 features        | bool[1] | -     | bool[f]    |
    | codes   | (T,)         | int32 code ids          | bool[T] | -     | -          |
    | text    | (T,)         | int32 token ids         | bool[T] | -     | -          |
    | image   | (V, h, w, c) | uint8 or float32 views  | bool[V] | -     | -          |
    | signal  | (T, c)       | float32 samples         | bool[T] | -     | -          |

    `times` are hours since the data set's time zero. `features` names the last dimension; `titles`
    and `units` say in words what each is, '' where that is not known. Like `title` they change no
    number: two specs that differ in them are of the same records (`wordless`).
    """

    name: str
    kind: ModalityKind
    shape: tuple[int, ...]
    features: tuple[str, ...] = ()
    dtype: str = "float32"
    vocab: int | None = None
    title: str = ""
    titles: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def __post_init__(self):
        _check_names("modality", self.name, self.features)
        _check_words(f"modality {self.name}", self.title, *self.titles, *self.units)
        for what in ("titles", "units"):
            if getattr(self, what) and len(getattr(self, what)) != len(self.features):
                has = f"{len(getattr(self, what))} {what} of {len(self.features)} features"
                raise ValueError(f"modality {self.name}: {has}")
        if self.kind not in get_args(ModalityKind):
            raise ValueError(
                f"modality {self.name}: kind {self.kind!r} is not one of {get_args(ModalityKind)}"
            )
        if self.features and len(self.features) != self.shape[-1]:
            raise ValueError(
                f"modality {self.name}: {len(self.features)} feature names, shape {self.shape}"
            )

    @property
    def timed(self) -> bool:
        """Whether rows carry `times`."""
        return self.kind in TIMED_KINDS

    @property
    def length(self) -> int:
        """Positions along the masked dimension (1 for a table)."""
        return 1 if self.kind == "table" else self.shape[0]

    def cut(self, length: int) -> "ModalitySpec":
        """With at most `length` positions; kinds that are not ragged stay as they are."""
        if self.kind not in RAGGED_KINDS or length >= self.length:
            return self
        return dataclasses.replace(self, shape=(length, *self.shape[1:]))


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One prediction task.

    `dim` counts labels, classes or values. `transform`, `loc` and `scale` say how a regression
    target is mapped before the loss: `(transform(y) - loc) / scale`, with `loc` and `scale`
    fitted on the training split. `needs` lists modalities without which a row is not scored.
    `labels` names the values; of a survival task it holds the right ends of `dim` time intervals.
    `title`, `unit` (of a regression target) and `definition` say in words what is asked: of whom,
    by when, from which source. They change no number (`wordless`).
    """

    name: str
    kind: TaskKind
    dim: int = 1
    weight: float = 1.0
    labels: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    transform: Literal["none", "log1p"] = "none"
    loc: float = 0.0
    scale: float = 1.0
    auxiliary: bool = False
    title: str = ""
    unit: str = ""
    definition: str = ""

    def __post_init__(self):
        _check_names("task", self.name, self.labels)
        _check_words(f"task {self.name}", self.title, self.unit, definition=self.definition)
        if self.kind not in get_args(TaskKind):
            raise ValueError(
                f"task {self.name}: kind {self.kind!r} is not one of {get_args(TaskKind)}"
            )
        if self.dim < 1:
            raise ValueError(f"task {self.name}: dim={self.dim} must be at least 1")


@dataclasses.dataclass(frozen=True)
class About:
    """What a reader must know of a data set, in words: as TRIPOD+AI and model cards ask.

    Every field is a sentence or a few; '' where nobody has said it, which the report says.
    """

    title: str = ""
    source: str = ""  # which records, collected for what
    setting: str = ""  # where: how many centres of which kind, which country
    period: str = ""  # from when to when
    participants: str = ""  # who is in, who is left out
    use: str = ""  # what predictions are meant for, at which moment, by whom
    not_for: str = ""
    limits: str = ""  # what is known to be wrong or missing

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_words(f"about.{field.name}", definition=getattr(self, field.name))


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Modalities and tasks of a data set.

    The order of `modalities` defines bit `m` of a presence pattern. `hours` is the length of
    the observation window; time embeddings divide by it. `groups` names columns that say to which
    groups of people a record belongs (sex, site); they judge a model and are never its input.
    `about` changes no number (`wordless`).
    """

    modalities: tuple[ModalitySpec, ...]
    tasks: tuple[TaskSpec, ...]
    hours: float = 48.0
    groups: tuple[str, ...] = ()
    about: About = About()

    def __post_init__(self):
        for name in self.groups:
            _check_names("group", name, ())
        for what, items in (("modality", self.modalities), ("task", self.tasks)):
            if not items:
                raise ValueError(f"a data set needs at least one {what}")
        each = {"modality": self.modality_names, "task": self.task_names, "group": self.groups}
        for what, names in each.items():
            if len(set(names)) != len(names):
                raise ValueError(f"duplicate {what} names: {sorted(names)}")
        _check_outputs(self.tasks)

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names in bit order."""
        return tuple(m.name for m in self.modalities)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(t.name for t in self.tasks)

    def cut(self, length: int) -> "DataSpec":
        """With ragged modalities of at most `length` positions each."""
        return dataclasses.replace(self, modalities=tuple(m.cut(length) for m in self.modalities))

    def modality(self, name: str) -> ModalitySpec:
        """The modality called `name`; KeyError lists the known ones."""
        return _find(self.modalities, name, "modality")

    def task(self, name: str) -> TaskSpec:
        """The task called `name`; KeyError lists the known ones."""
        return _find(self.tasks, name, "task")


def _find(items, name, what):
    for item in items:
        if item.name == name:
            return item
    raise KeyError(f"no {what} {name!r}; known: {', '.join(item.name for item in items)}")


def wordless(spec: DataSpec) -> DataSpec:
    """The schema without titles, units, definitions and `about`: what determines records."""
    nothing = {"title": "", "titles": (), "units": ()}
    modalities = tuple(dataclasses.replace(m, **nothing) for m in spec.modalities)
    nothing = {"title": "", "unit": "", "definition": ""}
    tasks = tuple(dataclasses.replace(t, **nothing) for t in spec.tasks)
    return dataclasses.replace(spec, modalities=modalities, tasks=tasks, about=About())


def words(spec: DataSpec) -> dict[str, Any]:
    """Titles, units, definitions and `about` as JSON, without those that nobody has given.

    {about: {...}, tasks: {task: {title, unit, definition}}, modalities: {name: {title, features:
    {feature: {title, unit}}}}}
    """

    def given(**texts: str) -> dict[str, str]:
        return {key: text for key, text in texts.items() if text}

    tasks = {t.name: given(title=t.title, unit=t.unit, definition=t.definition) for t in spec.tasks}
    modalities = {}
    for m in spec.modalities:
        blank = ("",) * len(m.features)
        texts = zip(m.features, m.titles or blank, m.units or blank, strict=True)
        features = {name: given(title=title, unit=unit) for name, title, unit in texts}
        features = {name: found for name, found in features.items() if found}
        modalities[m.name] = given(title=m.title) | ({"features": features} if features else {})
    return {
        "about": given(**dataclasses.asdict(spec.about)),
        "tasks": tasks,
        "modalities": modalities,
    }
