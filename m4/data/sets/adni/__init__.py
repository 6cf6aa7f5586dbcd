"""ADNI in Flex-MoE's layout: diagnosis from image, genome, clinical tables and biospecimens.

**Layout only**: read on invented files, never yet on the real ones.

The Alzheimer's Disease Neuroimaging Initiative gives its files to approved researchers. Flex-MoE
(Yun et al., NeurIPS 2024) merges them by its own scripts into

    adni/label.csv                               PTID, DIAGNOSIS 1 to 3 that never changes
    adni/PTID_splits.json                        training, validation, testing: lists of PTID
    adni/image/UCSFFSX7_<date>.csv               FreeSurfer measures, PTID and update_stamp
    adni/image/ADNI_G.npy, ADNI_subj.txt, *.nii.gz     grey-matter maps, for image="volume"
    adni/genomic/genomic_merged.h5ad             AnnData, subjects x variants of 0, 1, 2
    adni/clinical/clinical_merged.csv            first column PTID, numbers
    adni/biospecimen/biospecimen_merged.csv      the same

which is what is read here. A modality file that lacks is an error: ask for fewer `modalities`.
Without PTID_splits.json (it was not published) subjects are split 70 : 15 : 15 by a keyed hash.

Departures from the release: gaps stay gaps instead of being filled with modes and means over all
subjects; scaling is fitted on training subjects only; of the variants the `variants` most variable
in training subjects are kept, not all.

Letters: n subjects or scans, f features, v voxels inside the mask.
"""

import datetime
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import csv_files, identifiers, split
from m4.data.cohort import Cohort, Example, checksums, patient_number
from m4.data.option_checks import check
from m4.data.sets.adni.invented import invent  # noqa: F401
from m4.errors import DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "2"
LICENCE = "ADNI Data Use Agreement"
WHERE = "ADNI needs an approved application, https://adni.loni.usc.edu; see docs/datasets.md"
FOLDER = "adni"
INVENTED = {"adni": {}}
DIAGNOSES = ("normal", "impaired", "dementia")
MODALITIES = ("image", "genomic", "clinical", "biospecimen")  # Flex-MoE's order
FILES = {
    "genomic": "genomic/genomic_merged.h5ad",
    "clinical": "clinical/clinical_merged.csv",
    "biospecimen": "biospecimen/biospecimen_merged.csv",
}
IMAGES = {"freesurfer": ("UCSFFSX7*.csv",), "volume": ("ADNI_G.npy", "ADNI_subj.txt", "*.nii.gz")}
LEAKS = ("PTCOGBEG", "PTADDX", "PTADBEG")  # years of onset and diagnosis
UNKNOWN = (-1, -4)  # ADNI's codes of what is missing
GREY = 150  # label of the atlas's mask
SPLITS = {"training": "train", "validation": "val", "testing": "test"}
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
CHUNK = 64  # subjects of the genome read at once


def spec(
    *,
    image: str = "freesurfer",
    modalities: Sequence[str] = MODALITIES,
    variants: int = 1024,
    volume: tuple[int, ...] = (91, 109, 91, 1),
) -> DataSpec:
    """The schema. Widths of tables are those of the files; until they are read, 1.

    Args:
      image: "freesurfer", a table, or "volume".
      modalities: some of `MODALITIES`.
      variants: genotypes kept at most.
      volume: slices, rows, columns and channels of a volume; the mask's shape.

    Raises:
      ConfigError: one line per wrong option.
    """
    check(
        one=[("image", image, IMAGES)],
        some=[("modalities", modalities, MODALITIES)],
        least=[("variants", variants, 1)],
    )
    volumes = {"image": ModalitySpec("image", "image", tuple(volume))} if image == "volume" else {}
    return DataSpec(
        tuple(
            volumes.get(name, ModalitySpec(name, "table", (1,)))
            for name in MODALITIES
            if name in modalities
        ),
        (TaskSpec("diagnosis", "multiclass", dim=3, labels=DIAGNOSES),),
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per file or package that is asked for and not there."""
    data, root = spec(**options), Path(raw_dir) / FOLDER
    missing, needed = [], {"label": "label.csv"}
    needed |= {name: FILES[name] for name in data.modality_names if name in FILES}
    missing += [f"{root / file}: missing" for file in needed.values() if not (root / file).exists()]
    image = options.get("image", "freesurfer")
    if "image" in data.modality_names:
        places = [f"image/{pattern}" for pattern in IMAGES[image]]
        missing += [f"{root / place}: missing" for place in places if not [*root.glob(place)]]
    packages = {"genomic": "h5py"} | ({"image": "nibabel"} if image == "volume" else {})
    for name, package in packages.items():
        if name in data.modality_names and importlib.util.find_spec(package) is None:
            missing.append(f"{package} is not installed: pip install 'm4-moe[adni]'")
    return missing


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Subjects with a diagnosis and at least one modality; all but volumes is kept in memory.

    Raises:
      DataError: missing or damaged files, no subject left.
    """
    declared, root = spec(**options), Path(raw_dir) / FOLDER
    missing = missing_files(raw_dir, **options)
    if missing:
        raise DataError(*missing)
    forms = identifiers.Forms()
    label_of, flow = _labels(root / "label.csv", forms)
    part_of, note = _splits(root / "PTID_splits.json", label_of, seed, forms)
    flow.append(("in a split", len(part_of)))
    train = {who for who, part in part_of.items() if part == "train"}
    tables, specs, files = {}, [], [root / "label.csv"]
    for modality in declared.modalities:
        if modality.kind == "image":
            table, paths = _volumes(root / "image", modality.shape, train)
        else:
            counts: Counter[str] = Counter()
            variants = options.get("variants", 1024)
            table, names, paths = _table(root, modality.name, train, variants, counts)
            flow += [(f"{modality.name}: {step}", count) for step, count in counts.items()]
            if not names:
                raise DataError(f"{paths[0]}: no column of numbers beside the subject's")
            modality = ModalitySpec(modality.name, "table", (len(names),), features=names)
        _alike(table, forms.check, paths[-1])
        identifiers.require_match(label_of, table, f"{paths[0]}: of the subjects in label.csv")
        tables[modality.name], files = table, [*files, *paths]
        specs.append(modality)
        flow.append((f"with {modality.name}", len(part_of.keys() & table.keys())))
        if table and not flow[-1][1]:
            raise DataError(
                f"{paths[0]}: holds none of the {len(part_of)} subjects of label.csv in a split."
                f" Are their PTID written alike? Else leave {modality.name} out of"
                " data.options.modalities"
            )
    kept = [who for who in part_of if any(who in table for table in tables.values())]
    flow.append(("with any modality", len(kept)))

    def examples(name: str) -> Iterator[Example]:
        for who in kept:
            if part_of[who] == name:
                there = {m: {"values": t[who]} for m, t in tables.items() if who in t}
                targets = {"diagnosis": label_of[who]}
                yield {"patient": patient_number(who), "inputs": there, "targets": targets}

    return Cohort(
        spec=DataSpec(tuple(specs), declared.tasks),
        splits={name: lambda name=name: examples(name) for name in FRACTIONS},
        sources=checksums(Path(raw_dir), files),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes=note,
    )


def _alike(people: Iterable[str], take: identifiers.Check, path: Path) -> None:
    """Hands canonical identifiers to `take`. Raises DataError where it raises ValueError."""
    try:
        for who in map(identifiers.canonical, people):
            if who is not None:
                take(who)
    except ValueError as error:
        raise DataError(f"{path}: a subject {error}") from None


def _rows(path: Path, who: str, columns: Iterable[str]) -> Iterator[tuple[str, str, dict]]:
    """(subject, where it stands, row) of a table. Raises DataError for a row without a subject."""
    for line, row in csv_files.rows(path, (who, *columns), ids=(who,)):
        if not row[who]:
            raise DataError(f"{path}: line {line}: {who} is missing")
        yield row[who], f"{path}: line {line}", row


def _labels(path: Path, forms: identifiers.Forms) -> tuple[dict[str, int], list]:
    """Subject -> class, and the flow so far; `forms` keeps how the subjects are written."""
    found: dict[str, set[int]] = {}
    for who, where, row in _rows(path, "PTID", ("DIAGNOSIS",)):
        try:
            found.setdefault(who, set()).add((1, 2, 3).index(float(row["DIAGNOSIS"])))
        except ValueError:
            raise DataError(f"{where}: DIAGNOSIS is none of 1, 2, 3") from None
    one = {who: classes.pop() for who, classes in found.items() if len(classes) == 1}
    _alike(found, forms.keep, path)
    return one, [
        ("subjects with one diagnosis", len(one)),
        ("subjects with two diagnoses, left out", len(found) - len(one)),
    ]


def _splits(
    path: Path, label_of: dict[str, int], seed: int, forms: identifiers.Forms
) -> tuple[dict[str, str], str]:
    """Subject -> split, and how it was split. Messages quote nothing: keys may be subjects."""
    if not path.exists():
        part_of = {who: split.assign(who, FRACTIONS, seed) for who in label_of}
        return part_of, "split by a keyed hash: there is no PTID_splits.json"
    try:
        lists = json.loads(path.read_text())
    except ValueError:
        raise DataError(f"{path}: no JSON; write it again, or leave it out") from None
    named = isinstance(lists, dict) and {*lists} == {*SPLITS}
    if not named or not all(isinstance(one, list) for one in lists.values()):
        raise DataError(f"{path}: must hold the lists {', '.join(SPLITS)}, and nothing else")
    part_of = {}
    for key, part in SPLITS.items():
        for who in (identifiers.text(one, f"{path}: a subject") for one in lists[key]):
            if part_of.setdefault(who, part) != part:
                raise DataError(f"{path}: a subject is in {part_of[who]} and in {part}")
    _alike(part_of, forms.check, path)
    return {who: part for who, part in part_of.items() if who in label_of}, f"split by {path.name}"


def _table(root: Path, name: str, train: set[str], variants: int, counts: Counter):
    """Subject -> f32[f], names of the features, files."""
    if name == "image":
        (path, *_) = sorted(root.glob(f"image/{IMAGES['freesurfer'][0]}"), reverse=True)
        return *_freesurfer(path, counts), [path]
    path = root / FILES[name]
    if name == "genomic":
        return *_genome(path, train, variants, counts), [path]
    header = csv_files.header(path)
    names = tuple(c for c in header[1:] if not c.upper().startswith(LEAKS))
    table = {}
    for who, where, row in _rows(path, header[0], names):
        table.setdefault(who, []).append(_numbers([row[n] for n in names], where))
    return _agreed(table, counts), names, [path]


def _agreed(rows_of: dict[str, list[np.ndarray]], counts: Counter) -> dict[str, np.ndarray]:
    """Subject -> its row; a subject whose rows differ has none."""
    found = {
        who: first
        for who, (first, *more) in rows_of.items()
        if all(np.array_equal(first, other, equal_nan=True) for other in more)
    }
    counts["subjects whose rows differ, without it"] += len(rows_of) - len(found)
    return found


def _freesurfer(path: Path, counts: Counter) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The latest volumes, thicknesses and areas of every subject."""
    header = csv_files.header(path)
    names = tuple(c for c in header if c.startswith("ST") and c.endswith(("CV", "TA", "SV")))
    latest: dict[str, str] = {}
    table: dict[str, list[np.ndarray]] = {}
    for who, where, row in _rows(path, "PTID", ("update_stamp", *names)):
        stamp = _stamp(row["update_stamp"])
        counts["rows without a readable date"] += not stamp
        if stamp >= latest.get(who, ""):
            values = _numbers([row[n] for n in names], where)
            unknown_f = np.isin(values, UNKNOWN)
            counts["sizes of -1 or -4, gaps"] += int(unknown_f.sum())
            values[unknown_f] = np.nan
            table[who] = [*(table[who] if latest.get(who) == stamp else []), values]
            latest[who] = stamp
    return _agreed(table, counts), names


def _stamp(text: str) -> str:
    """A date that sorts: ISO, from ISO or month/day/year; empty for anything else."""
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d", "%m/%d/%Y"):
        try:
            return datetime.datetime.strptime(text.strip(), form).isoformat()
        except ValueError:
            continue
    return ""


def _genome(path: Path, train: set[str], variants: int, counts: Counter):
    """The most variable variants in training subjects, in the order of the file."""
    import h5py

    with _h5(path) as file:
        try:
            parts: dict[str, Any] = {name: file[name] for name in ("X", "obs", "var")}
            matrix, obs, var = parts.values()
            people = [_subject(who, path) for who in obs[obs.attrs["_index"]][:]]
            names = [_text(name) for name in var[var.attrs["_index"]][:]]
        except KeyError as error:
            raise DataError(f"{path}: no AnnData file with a dense X ({error})") from None
        if not isinstance(matrix, h5py.Dataset) or matrix.shape != (len(people), len(names)):
            raise DataError(f"{path}: X must be a dense matrix of subjects x variants")

        def blocks():
            for start in range(0, len(people), CHUNK):
                block_nf = matrix[start : start + CHUNK].astype(float)
                wrong_nf = (block_nf < 0) | (block_nf > 2)
                block_nf[wrong_nf] = np.nan
                yield block_nf, int(wrong_nf.sum()), people[start : start + CHUNK]

        count, total, square = np.zeros((3, len(names)))
        for block_nf, wrong, who in blocks():
            counts["genotypes outside 0 to 2, gaps"] += wrong
            block_nf = block_nf[[one in train for one in who]]
            count += (~np.isnan(block_nf)).sum(0)
            total += np.nansum(block_nf, 0)
            square += np.nansum(block_nf**2, 0)
        mean = total / np.maximum(count, 1)
        variance = square / np.maximum(count, 1) - mean**2
        kept = np.sort(np.argsort(-variance, kind="stable")[:variants])
        table: dict[str, list[np.ndarray]] = {}
        for block_nf, _, who in blocks():
            for one, row_f in zip(who, block_nf[:, kept].astype(np.float32), strict=True):
                table.setdefault(one, []).append(row_f)
    return _agreed(table, counts), tuple(names[k] for k in kept)


def _h5(path: Path):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError:
        raise DataError(f"{path}: no HDF5 file, or a damaged one; get it again") from None


def _text(value) -> str:
    return (value.decode() if isinstance(value, bytes) else str(value)).strip()


def _subject(value, path: Path) -> str:
    who = identifiers.text(_text(value), f"{path}: a subject")
    if not who:
        raise DataError(f"{path}: a subject is missing")
    return who


class _Volumes(dict):
    """Subject -> volume, unpacked from the memory map when asked for."""

    def __init__(self, scans, number_of, mask, mean, std, shape):
        super().__init__(number_of)
        self._scans, self._mask, self._mean, self._std = scans, mask, mean, std
        self._shape = shape

    def __getitem__(self, who):
        volume = np.zeros(self._mask.shape, np.float32)
        volume[self._mask] = self._scans[super().__getitem__(who)]
        return ((volume - self._mean) / self._std).reshape(self._shape)


def _volumes(folder: Path, shape: tuple[int, ...], train: set[str]):
    """The newest scan of every subject; one mean and scale, of training subjects' voxels."""
    import nibabel

    (mask_file,) = sorted(folder.glob("*.nii.gz"))[:1]
    image: Any = nibabel.load(mask_file)
    if np.prod(image.shape, dtype=float) != np.prod(shape):  # before it is unpacked
        raise DataError(
            f"{folder}: a mask of {image.shape} voxels and a volume of {shape} do not belong"
            " together"
        )
    mask = np.asarray(image.dataobj) == GREY
    scans = np.load(folder / "ADNI_G.npy", mmap_mode="r", allow_pickle=False)
    lines = (folder / "ADNI_subj.txt").read_text().split()
    if scans.shape != (len(lines), mask.sum()):
        raise DataError(
            f"{folder}: {scans.shape} voxels, {len(lines)} subjects and a mask of {mask.shape} with"
            f" {mask.sum()} voxels of value {GREY} do not belong together (volume: {shape})"
        )
    newest: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines):  # <PTID of three parts>_..._<date>
        parts = line.split("_")
        who = "_".join(parts[:3])
        newest[who] = max(newest.get(who, ("", -1)), (parts[-1], number))
    number_of = {who: number for who, (_, number) in newest.items()}
    ours = [scans[number].astype(float) for who, number in number_of.items() if who in train]
    mean = np.mean([v.mean() for v in ours]) if ours else 0.0
    std = np.sqrt(np.mean([((v - mean) ** 2).mean() for v in ours])) if ours else 1.0
    files = [mask_file, folder / "ADNI_G.npy", folder / "ADNI_subj.txt"]
    return _Volumes(scans, number_of, mask, mean, max(std, 1e-6), shape), files


def _numbers(cells: Sequence[str], where: str) -> np.ndarray:
    words = {"": "nan", "true": "1", "false": "-1"}
    try:
        with np.errstate(over="ignore"):
            found = np.array([float(words.get(c.lower(), c)) for c in cells], np.float32)
    except ValueError:
        raise DataError(f"{where}: a cell is no number") from None
    if np.isinf(found).any():
        raise DataError(f"{where}: a cell is infinite")
    return found
