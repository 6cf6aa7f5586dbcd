"""PTB-XL: 21,799 electrocardiograms of twelve leads and ten seconds, each lead a modality.

**Layout only**: read on invented files, never yet on the real ones. Wagner et al.: *PTB-XL, a large
publicly available electrocardiography dataset* (2020), https://physionet.org/content/ptb-xl/.

    ptb-xl/ptbxl_database.csv, scp_statements.csv       or ptb-xl/1.0.3/...
    ptb-xl/records100/00000/00001_lr.hea, .dat          with rate=500 records500

Task `superclass`, five labels, is that of the benchmark (Strodthoff et al. 2021): the diagnostic
classes of a record's statements, however likely; a record without any is left out. So are the
folds: 1 to 8 train, 9 watches, 10 tests, no patient in two. With `num_folds` 2, 5 or 10 the ten are
turned, the published test fold with them, and the fold before those that are tested watches. The
cardiologist's `report` nearly says the answer: it is a modality on request (`modalities`), not by
default. Of new records (`--on`) all are asked: diagnoses, statements and folds may be lacking.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4 import local
from m4.data import wfdb
from m4.data.bands import band
from m4.data.cohort import Cohort, Example, checksums, hash64, patient_number
from m4.data.csv_files import rows
from m4.data.fake import fresh, write_table
from m4.data.option_checks import check
from m4.errors import DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "Creative Commons Attribution 4.0; cite Wagner et al. 2020"
WHERE = "download PTB-XL from https://physionet.org/content/ptb-xl/ as ptb-xl/"
FOLDER = "ptb-xl"
SEEDED = False
INVENTED = {"ptbxl": {}}
CLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LEADS = tuple(f"lead_{lead}" for lead in wfdb.LEADS)
DATABASE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
COLUMNS = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold")
SECONDS, VOCAB, WORDS = 10, 2048, 64
PARTS = 10
CODE = re.compile(r"'([^']{1,20})'\s*:")
SEXES = {"0": "male", "1": "female", "0.0": "male", "1.0": "female"}
ABOUT = About(
    title="PTB-XL",
    source="Resting electrocardiograms with a cardiologist's report, for research.",
    setting="Devices of Schiller AG, 52 sites, collected by the PTB in Germany.",
    period="October 1989 to June 1996.",
    participants="18,869 patients, about half of them women; records without a diagnosis left out.",
    use="Which diagnostic classes the report of an electrocardiogram names.",
    not_for="Care of patients.",
    limits="Labels come from reports, many of them drafted by a machine; old devices, one country.",
)
TASK = TaskSpec(
    "superclass",
    "multilabel",
    dim=len(CLASSES),
    labels=CLASSES,
    title="Diagnostic classes",
    definition=(
        "Normal, myocardial infarction, ST and T changes, conduction disturbance, hypertrophy: the"
        " diagnostic classes of the record's SCP statements, however likely these are."
    ),
)


def spec(
    *,
    modalities: Sequence[str] = LEADS,
    rate: int = 100,
    fold: int = 0,
    num_folds: int = 0,
) -> DataSpec:
    """Twelve signals [10 rate, 1] in millivolts, the report as hashed words on request.

    Args:
      modalities: names of `LEADS`, and 'report'.
      rate: samples per second, 100 or 500.
      fold: which of `num_folds` is tested.
      num_folds: 2, 5 or 10; 0 for the published folds.

    Raises ConfigError for wrong options.
    """
    also = [] if fold < max(1, num_folds) else [f"data.options.fold: {fold} is of no fold"]
    check(
        some=[("modalities", modalities, (*LEADS, "report"))],
        one=[
            ("rate", str(rate), ("100", "500")),
            ("num_folds", str(num_folds), ("0", "2", "5", "10")),
        ],
        least=[("fold", fold, 0)],
        also=also,
    )
    leads = tuple(
        ModalitySpec(
            name,
            "signal",
            (SECONDS * rate, 1),
            ("voltage",),
            title=f"ECG lead {name.removeprefix('lead_')}",
            units=("mV",),
            titles=("",),
        )
        for name in LEADS
        if name in modalities
    )
    report = ModalitySpec(
        "report", "text", (WORDS,), dtype="int32", vocab=VOCAB, title="Cardiologist's report"
    )
    chosen = (*leads, report) if "report" in modalities else leads
    return DataSpec(chosen, (TASK,), hours=SECONDS / 3600, groups=("sex", "age_band"), about=ABOUT)


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per table that is not there."""
    root = _root(Path(raw_dir))
    return [
        f"{root / name}: missing" for name in (DATABASE, STATEMENTS) if not (root / name).exists()
    ]


def cohort(raw_dir: Path | str, *, seed: int = 0, **options) -> Cohort:
    """Records by the published folds, or turned ones.

    Raises:
      DataError: tables without their columns or with wrong values; while iterating, for a waveform
        that is missing or damaged, with its file.
    """
    del seed
    data, root = spec(**options), _root(Path(raw_dir))
    rate = options.get("rate", 100)
    found, flow = _records(root, rate)

    def examples(name: str) -> Iterator[Example]:
        for record in found:
            if part(record["fold"], options.get("fold", 0), options.get("num_folds", 0)) == name:
                yield _example(data, record, rate)

    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples(name) for name in ("train", "val", "test")},
        sources=_sources(Path(raw_dir), root, found),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes="folds are those of the data set; a patient is in one of them",
    )


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Other records as the split 'new', each by its ecg_id; with a diagnosis or without."""
    del vocabularies
    root, rate = _root(folder), resolved.get("rate", 100)
    if not (root / DATABASE).exists():
        raise DataError(f"{root / DATABASE}: missing")
    data = spec(**resolved)
    found, flow = _records(root, rate, all_of=True)

    def examples() -> Iterator[Example]:
        for record in found:
            yield {**_example(data, record, rate), "key": (int(record["ecg_id"]), None)}

    sources = _sources(folder, root, found)
    return Cohort(data, {"new": examples}, sources, LICENCE, VERSION, flow=flow)


def part(own: int, fold: int, num_folds: int) -> str:
    """The split of a record of the published fold `own`, 1 to 10."""
    tested = range(10, 11)
    if num_folds:
        size = PARTS // num_folds
        tested = range(1 + fold * size, 1 + (fold + 1) * size)
    if own in tested:
        return "test"
    return "val" if own == (tested.start - 2) % PARTS + 1 else "train"


def _root(raw_dir: Path) -> Path:
    own = raw_dir / FOLDER
    releases = sorted(path.parent for path in own.glob(f"*/{DATABASE}"))
    return own if (own / DATABASE).exists() or not releases else releases[-1]


def _sources(raw_dir: Path, root: Path, found: list[dict]) -> dict[str, dict[str, Any]]:
    """Checksums of the tables and headers. A header holds the checksums of its samples."""
    files = {root / DATABASE, root / STATEMENTS, *(record["header"] for record in found)}
    return checksums(raw_dir, filter(Path.exists, files))


def _classes(path: Path) -> dict[str, int]:
    """The class of every diagnostic statement."""
    classes = {}
    for line, row in rows(path, ("", "diagnostic", "diagnostic_class")):
        if row["diagnostic"] in ("1", "1.0"):
            if row["diagnostic_class"] not in CLASSES:
                raise DataError(f"{path}, line {line}: no class of {', '.join(CLASSES)}")
            classes[row[""]] = CLASSES.index(row["diagnostic_class"])
    return classes


def _records(
    root: Path, rate: int, *, all_of: bool = False
) -> tuple[list[dict], list[tuple[str, int]]]:
    """The records that have a class, or `all_of` them, and how many there were."""
    known = not all_of or (root / STATEMENTS).exists()
    classes = _classes(root / STATEMENTS) if known else {}
    file, found, total = "filename_lr" if rate == 100 else "filename_hr", [], 0
    needed = ("ecg_id", "patient_id") if all_of else COLUMNS
    for line, given in rows(root / DATABASE, (*needed, file)):
        total, where = total + 1, f"{root / DATABASE}, line {line}"
        row = dict.fromkeys(COLUMNS, "") | given
        fold, place = row["strat_fold"].removesuffix(".0"), local.below(root, row[file])
        if not all_of and fold not in map(str, range(1, PARTS + 1)):
            raise DataError(f"{where}: strat_fold is none of 1 to {PARTS}")
        if all_of and not row["ecg_id"].isdecimal():
            raise DataError(f"{where}: ecg_id is no whole number")
        if place is None:
            raise DataError(f"{where}: {file} is no path below {root.name}")
        here = sorted({classes[code] for code in CODE.findall(row["scp_codes"]) if code in classes})
        if here or all_of:
            own = {"fold": 0 if all_of else int(fold), "classes": here}
            own |= {"patient": patient_number(row["patient_id"].removesuffix(".0"))}
            found.append(row | own | {"header": place.with_suffix(".hea")})
    labelled = sum(bool(record["classes"]) for record in found)
    return found, [("records", total), ("with a diagnostic class", labelled)]


def _example(data: DataSpec, record: dict, rate: int) -> Example:
    try:
        value_CT, found, names = wfdb.read(record["header"])
    except DataError as error:
        raise DataError(f"{record['header']}: {error}") from None
    if found != rate:
        raise DataError(f"{record['header']}: {found:g} samples per second, not {rate}")
    inputs = {}
    for c, name in enumerate(names):
        known = wfdb.lead_of(name)
        own_T = value_CT[c][~np.isnan(value_CT[c])]
        if known and f"lead_{known[0]}" in data.modality_names and len(own_T):
            inputs[f"lead_{known[0]}"] = {"values": known[1] * own_T[:, None]}
    words = re.findall(r"\w+", record["report"].lower())[:WORDS]
    if words and "report" in data.modality_names:
        inputs["report"] = {"values": [1 + hash64(word) % (VOCAB - 1) for word in words]}
    age = float(record["age"]) if re.fullmatch(r"\d{1,3}(\.\d+)?", record["age"]) else None
    return {
        "patient": record["patient"],
        "inputs": inputs,
        "targets": {"superclass": np.isin(range(len(CLASSES)), record["classes"]).astype(float)}
        if record["classes"]
        else {},
        "groups": {
            "sex": SEXES.get(record["sex"]),
            "age_band": band(age, (50, 65, 80)) or None,
        },
    }


def invent(folder: Path, *, patients: int, seed: int) -> Path:
    """`ptb-xl/`: beats of a rate and height that a class shifts; some leads are flat."""
    root, rng = fresh(folder / FOLDER), np.random.default_rng(seed)
    statements = [("", "description", "diagnostic", "diagnostic_class")]
    statements += [(f"X{name}", name.lower(), "1.0", name) for name in CLASSES]
    write_table(root / STATEMENTS, [*statements, ("SR", "sinus rhythm", "", "")])
    table: list[tuple] = [(*COLUMNS, "filename_lr")]
    seconds = np.arange(SECONDS * 100) / 100
    for number in range(1, max(patients, 20) + 1):
        kind = int(rng.integers(len(CLASSES)))
        beat = np.exp(-(((seconds * (1 + 0.1 * kind)) % 1 - 0.5) ** 2) / 0.002)
        value_CT = beat * rng.uniform(0.5, 1.5, (12, 1)) * (1 + 0.2 * kind)
        value_CT += 0.05 * rng.standard_normal((12, len(seconds)))
        name = f"records100/00000/{number:05}_lr"
        wfdb.write(root / f"{name}.hea", value_CT, rate=100, leads=wfdb.LEADS)
        codes = f"{{'X{CLASSES[kind]}': 100.0, 'SR': 0.0}}" if number % 9 else "{'SR': 0.0}"
        about = (f"{rng.integers(20, 90)}.0", int(rng.integers(2)), "sinus rhythm", codes)
        table.append((number, f"{number}.0", *about, number % PARTS + 1, name))
    write_table(root / DATABASE, table)
    return root
