"""MIMIC-IV: one example per ICU stay, streamed from the raw csv files.

Johnson et al., MIMIC-IV, a freely accessible electronic health record dataset (Sci Data 2023).
Tasks and cohort follow FuseMoE (Han et al., NeurIPS 2024, section 4 and data appendix): time zero
is ICU admission, events before it are dropped.

| `window` | stays | input ends | tasks by default (others: `catalogue.WINDOWS`) |
|---|---|---|---|
| `48h` | of at least 48 h | after 48 h | `ihm48`, `los`, `los_under_96h`, `phe` |
| `stay` | all | with the stay | `phe` |
| `hour` | of at least 5 h | at one full hour, drawn evenly | `decompensation`, `los_remaining` |
| `cxr` | with a frontal X-ray after hour 4 | at one such image, drawn evenly | HAIM's, M3H's |

What each task means is said in `labels.py`. Draws are keyed by stay and seed.

Modalities: `vitals`, `labs`, `static`; bags of hashed codes `medications` (ICU inputs),
`prescriptions`, `procedures`, `history` (diagnoses of earlier admissions); notes, X-rays and ECGs
(`linked.py`); as published: `fusemoe`, the paper's 30 vitals and laboratory values in one series,
`benchmark` and `flexcare` (`benchmark.py`), HAIM's blocks (`haim_blocks.py`).
Diagnoses of the same admission are written at discharge and are never an input. In the demo, which
has no notes, images and ECGs, such a modality is absent; in the full data it must be there.

Where m4 departs from the authors' preprocessing, and why:
- split by patient, not by stay (`split_by="stay"` for theirs, which also makes the stay the unit of
  the bootstrap): some of their patients are in two splits;
- an event counts from when it was *stored* if that is known and later than the window's end
  (`available="charted"` for theirs): a laboratory value drawn in hour 47 and reported in hour 50 is
  not known at hour 48;
- values outside a physiological range are dropped and counted;
- stays with more rows than fit keep their last ones instead of being dropped;
- the first value of a variable at one time stands, as theirs; all times are kept.

New stays for a trained model (`--on`) are those of another folder with such files, or of a part of
them: all that the window's filters keep. A table that is not there leaves its modality absent, or
its task without labels; those of stays, admissions and patients must be there.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m4.data import split as splits
from m4.data.cohort import Cohort, checksums
from m4.data.option_checks import check
from m4.data.sets.mimiciv import catalogue, follow_up, linked, population, release
from m4.data.sets.mimiciv.embeddings import folder as folders
from m4.data.sets.mimiciv.examples import Examples
from m4.data.sets.mimiciv.invented import invent  # noqa: F401
from m4.data.sets.mimiciv.selector import SOURCES
from m4.errors import DataError
from m4.specs import DataSpec

VERSION = "2.2.0"
SCRATCH = True  # `cohort` takes a folder in which an interrupted build goes on
ELSEWHERE = ("embeddings",)
LICENCE = (
    "PhysioNet Credentialed Health Data License 1.5.0 (the demo: Open Data Commons Open Database "
    "License 1.0)"
)
WHERE = (
    "MIMIC-IV needs credentialed access: https://physionet.org/content/mimiciv/ ; unpack it as "
    "mimiciv/ under M4_RAW_DIR. The open demo https://physionet.org/content/mimic-iv-demo/ goes "
    "with variant :demo; variant :synthetic needs no files"
)
DEFAULT = ("vitals", "labs", "static", "medications")
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
INVENTED = {"mimic-linked": {}}  # notes, images and ECGs for the stays of files that are there
CHOICES = {
    "window": tuple(catalogue.WINDOWS),
    "variables": ("m4", "fusemoe"),
    "split_by": ("subject", "stay"),
    "available": ("stored", "charted"),
}
ALWAYS = ("icustays", "admissions", "patients")
# Beyond what `selector.SOURCES` says, and the tables of every cohort.
CODED = {"history": "diagnoses_icd", "phe": "diagnoses_icd", "diseases": "diagnoses_icd"}
CODED |= {"drg": "drgcodes"}
CONTENT = {
    "icustays": "ICU stays",
    "admissions": "hospital admissions",
    "patients": "patients",
    "chartevents": "charted vital signs",
    "labevents": "laboratory values",
    "inputevents": "ICU infusions and drugs",
    "prescriptions": "prescriptions",
    "procedureevents": "ICU procedures",
    "diagnoses_icd": "discharge diagnoses",
    "drgcodes": "diagnosis-related groups",
}


def spec(
    *,
    demo: bool = False,
    window: str = "48h",
    modalities=DEFAULT,
    tasks=None,
    split_by: str = "subject",
    available: str = "stored",
    steps: int = 256,
    lab_steps: int = 64,
    vocab: int = catalogue.VOCAB,
    variables: str = "m4",
    dims=None,
    embeddings=None,
    phenotype_file: str = "",
    fold: int = 0,
    num_folds: int = 0,
) -> DataSpec:
    """The schema. `tasks=None` is all that the window allows.

    Args:
      demo: read the open demo of 100 patients instead of the full data.
      window: "48h", "stay", "hour" or "cxr".
      modalities: names of `catalogue.MODALITIES`.
      tasks: names of `catalogue.ALL_TASKS` that the window allows.
      split_by: "subject", or "stay" as the authors.
      available: "stored" or "charted", see the module.
      steps: rows of vitals kept.
      lab_steps: rows of labs kept.
      vocab: codes are hashed into this many ids.
      variables: "m4", all 32 vitals and laboratory values, or "fusemoe", the paper's 30.
      dims: modality of vectors -> width, if not that of `catalogue.VECTORS`.
      embeddings: "notes", "cxr" or "ecg" -> folder written by `python -m m4.data embed`.
      phenotype_file: csv of codes that replaces the built-in phenotypes.
      fold: which of `num_folds` is tested.
      num_folds: of cross-validation by `split_by`; 0 for the shares of `FRACTIONS`.

    Raises:
      ConfigError: one line per wrong option.
    """
    dims, vectors = dims or {}, (*catalogue.VECTORS, catalogue.EARLIER)
    default, others = catalogue.WINDOWS.get(window, ((), ()))
    allowed = (*default, *others) or catalogue.ALL_TASKS
    tasks = default or allowed if tasks is None else tasks
    chosen = {"window": window, "split_by": split_by, "available": available}
    chosen |= {"variables": variables}
    check(
        one=[(name, value, CHOICES[name]) for name, value in chosen.items()],
        some=[
            ("modalities", modalities, catalogue.MODALITIES),
            ("tasks", tasks, allowed),
            ("dims", dims or vectors, vectors),
            ("embeddings", embeddings or catalogue.VECTORS, catalogue.VECTORS),
        ],
        least=[("steps", steps, 1), ("lab_steps", lab_steps, 1), ("vocab", vocab, 1)],
        also=splits.fold_problems(fold, num_folds),
    )
    shapes = _shapes(steps, lab_steps, vocab, variables, dims)
    return catalogue.data_spec(modalities, tasks, catalogue.GROUPS, **shapes)


def _shapes(steps: int, lab_steps: int, vocab: int, variables: str, dims: Mapping) -> dict:
    """What the options say of each modality's shape."""
    return {
        "vitals": {"steps": steps, "variables": variables},
        "labs": {"steps": lab_steps, "variables": variables},
        **dict.fromkeys(("fusemoe", "benchmark"), {"steps": steps}),
        **{name: {"vocab": vocab} for name in catalogue.CODES},
        **{name: {"dim": width} for name, width in dims.items()},
    }


def tables(data: DataSpec) -> list[str]:
    """Names of the tables that a schema needs."""
    names = (*data.modality_names, *data.task_names)
    return [*ALWAYS, *dict.fromkeys(table for name in names for table in _of(name))]


def _of(name: str) -> list[str]:
    """The tables of one modality or task."""
    found = [source.table for source in SOURCES.get(name, ())]
    return [*found, CODED[name]] if name in CODED else found


def _linked(data: DataSpec, options) -> list[str]:
    """What other data sets than MIMIC-IV are read for."""
    wanted = [name for name in data.modality_names if name in catalogue.LINKED]
    return [*wanted, *(("cxr_image",) if options.get("window") == "cxr" else ())]


def missing_files(raw_dir, **options) -> list[str]:
    """One line per file that is not there; standard library only."""
    demo = options.get("demo", False)
    root = release.find_root(raw_dir, demo=demo)
    if root is None:
        what = "mimic-iv-demo-*/" if demo else "mimiciv/ or mimic-iv-*/"
        other = release.find_root(raw_dir, demo=not demo)
        hint = f"; {other} is the {'full data' if demo else 'demo'}" if other else ""
        return [f"{raw_dir}: no {what} folder with hosp/ and icu/ in it{hint}"]
    data = spec(**options)
    missing = [
        f"{root / release.HOME.get(name, 'hosp') / name}.csv.gz: missing ({CONTENT[name]})"
        for name in tables(data)
        if release.table(root, name) is None
    ]
    if not demo or options.get("window") == "cxr":
        missing += linked.missing(raw_dir, _linked(data, options), options.get("embeddings") or {})
    return missing


def cohort(raw_dir, *, seed: int, scratch: Path | None = None, **options) -> Cohort:
    """The cohort of the raw files under `raw_dir`.

    Small tables are read at once (about 0.5 GB for the full data). Event tables are streamed
    when the first split is iterated: kept events go to temporary files, one per `ROWS` stays,
    and are read back one file at a time, so that memory does not grow with the tables. With a
    `scratch` folder these files outlive an interruption.

    Raises:
      DataError: no files, or no deaths outside the hospital for a task that needs them; while
        iterating, a damaged file, named.
    """
    data, chosen = spec(**options), {**(spec.__kwdefaults__ or {}), **options}
    missing = missing_files(raw_dir, **options)
    if missing:
        raise DataError(*missing)
    root, raw_dir = release.find_root(raw_dir, demo=chosen["demo"]), Path(raw_dir)
    assert root is not None  # no file is missing
    if unknown := follow_up.missing(root, data.task_names):
        raise DataError(*unknown)
    flow: list[tuple[str, int]] = []
    turn = {name: chosen[name] for name in ("fold", "num_folds")}
    choice = {name: chosen[name] for name in ("window", "split_by", "phenotype_file")}
    choice["names"] = tuple(FRACTIONS)
    choice["assign"] = functools.partial(splits.part, fractions=FRACTIONS, seed=seed, **turn)
    stays = population.load(root, raw_dir, data, flow, seed=seed, **choice)
    stored, embeddings = chosen["available"] == "stored", dict(chosen["embeddings"] or {})
    examples = Examples(root, raw_dir, data, stays, flow, stored, embeddings, scratch)
    sources, versions = _sources(root, raw_dir, data, chosen)
    encoders = _encoders(embeddings) if _linked(data, chosen) else {}
    groups = [found["sha256"] for found in _mapping(data, chosen).values()]
    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples.split(name) for name in FRACTIONS},
        sources=sources,
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes=", ".join(versions),
        joining=examples.joining,
        fitted=stays.fitted
        | ({"encoders": encoders} if encoders else {})
        | ({"phenotypes": groups} if groups else {}),
    )


def new(
    folder: Path,
    resolved: Mapping[str, Any],
    vocabularies: Mapping[str, Sequence[str]],
    *,
    seed: int,
    fitted: Mapping[str, Any],
    scratch: Path | None = None,
) -> Cohort:
    """Other stays as the split 'new', see the module; draws are keyed as in training.

    Raises DataError without stays, admissions and patients, or without any table of events, for
    vectors of another encoder than in training, and as `cohort`.
    """
    del vocabularies
    data, chosen = spec(**resolved), {**(spec.__kwdefaults__ or {}), **resolved}
    demo = chosen["demo"]
    root = release.find_root(folder, demo=demo) or release.find_root(folder, demo=not demo)
    if root is None:
        raise DataError(
            f"{folder}: no hosp/ and icu/ in it, nor in a folder mimiciv/ or mimic-iv*/"
        )
    embeddings = {
        name: place
        for name, place in (chosen["embeddings"] or {}).items()
        if name in data.modality_names
    }
    now, then = _encoders(embeddings), fitted.get("encoders", {})
    if differs := [name for name, told in now.items() if then.get(name, told) != told]:
        raise DataError(*(f"{name}: vectors by {now[name]}, not {then[name]}" for name in differs))
    given, warnings = _given(folder, root, data, chosen, fitted)
    flow: list[tuple[str, int]] = []
    choice = {name: chosen[name] for name in ("window", "split_by", "phenotype_file")}
    choice |= {"names": ("new",), "assign": lambda unit: "new", "fitted": fitted}
    stays = population.load(root, folder, given, flow, seed=seed, **choice)
    stored = chosen["available"] == "stored"
    examples = Examples(root, folder, given, stays, flow, stored, embeddings, scratch)
    sources, versions = _sources(root, folder, given, {**chosen, "embeddings": embeddings})
    return Cohort(
        spec=data,
        splits={"new": lambda: examples.split("new")},
        sources=sources,
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes=", ".join(versions),
        joining=examples.joining,
        warnings=warnings,
    )


def _given(
    raw_dir: Path, root: Path, data: DataSpec, chosen: Mapping[str, Any], fitted: Mapping[str, Any]
) -> tuple[DataSpec, list[str]]:
    """The part of a schema that a folder has the files of, and a line for the rest of it.

    Raises DataError if that is no more than what every folder must have, or no task, and for
    phenotypes of another file than in training.
    """
    lacking = {
        name: f"{', '.join(gone)} is not there"
        for name in (*data.modality_names, *data.task_names)
        if (gone := [f"{t}.csv.gz" for t in _of(name) if release.table(root, t) is None])
    }
    for name in _linked(data, {}):
        if linked.find(raw_dir, linked.KIND[name]) is None:
            lacking[name] = f"no {linked.TITLE[linked.KIND[name]]} is there"
    if "drg" in data.task_names and "drg" not in fitted:
        lacking["drg"] = "the groups of training are not known"
    if "phenotypes" in fitted and "phe" not in lacking:
        now = [found["sha256"] for found in _mapping(data, chosen).values()]
        if now != fitted["phenotypes"]:
            raise DataError(
                f"{chosen['phenotype_file']}: is not the file of phenotypes that the model was"
                " trained with; restore it"
            )
    for task in data.task_names:
        if follow_up.missing(root, (task,)):
            lacking[task] = "the release knows of no deaths outside the hospital"
    lines = [
        f"{root / release.HOME.get(t, 'hosp') / t}.csv.gz: missing ({CONTENT[t]})"
        for t in ALWAYS
        if release.table(root, t) is None
    ]
    events = [name for name in data.modality_names if _of(name) or name in catalogue.LINKED]
    if lines or (events and {*events} <= {*lacking}):
        raise DataError(
            *lines, *(f"{root}: {name}: {lacking[name]}" for name in events if name in lacking)
        )
    modalities = tuple(m for m in data.modalities if m.name not in lacking)
    tasks = tuple(t for t in data.tasks if t.name not in lacking)
    if not tasks:
        why = (f"{root}: {task.name}: {lacking[task.name]}" for task in data.tasks)
        raise DataError(*why, f"{root}: one of the model's tasks is needed; add a file of it")
    warnings = [f"{name}: {why}" for name, why in lacking.items()]
    return dataclasses.replace(data, modalities=modalities, tasks=tasks), warnings


def _encoders(embeddings: Mapping[str, str]) -> dict[str, str]:
    """What wrote the vectors of each modality."""
    return {
        name: f"{Path(facts['encoder']).name or facts['backend']} revision"
        f" {facts['revision'] or '-'} pooling {facts['pooling']}"
        for name, facts in folders.facts_of(dict(embeddings)).items()
    }


def _sources(root: Path, raw_dir: Path, data: DataSpec, chosen) -> tuple[dict, list[str]]:
    """Checksums of all that is read, and the releases and encoders that it comes from."""
    wanted, extra = _linked(data, chosen), {}
    files, versions = linked.sources(raw_dir, wanted)
    versions = [f"MIMIC-IV {'demo ' if chosen['demo'] else ''}{release.version(root)}", *versions]
    own = dict(chosen["embeddings"] or {}) if wanted else {}
    for name, facts in folders.facts_of(own).items():
        size = {"bytes": 2 * facts["count"] * facts["width"], "sha256": facts["sha256"]}
        extra[f"embeddings of {name}"] = size
    versions += [f"{name} by {told}" for name, told in _encoders(own).items()]
    files += [release.need(root, name) for name in tables(data)]
    return checksums(raw_dir, files) | _mapping(data, chosen) | extra, versions


def _mapping(data: DataSpec, chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Checksum of the file of phenotypes, if it is read, by its whole path: it lies anywhere."""
    if not chosen["phenotype_file"] or "phe" not in data.task_names:
        return {}
    path = Path(chosen["phenotype_file"]).absolute()
    return {path.as_posix(): found for found in checksums(path.parent, [path]).values()}
