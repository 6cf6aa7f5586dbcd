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
With `num_folds` those of training and validation are tested in turns, those of testing in none.
New subjects for a trained model (`--on`) are all in such a folder, with label.csv or without; a
modality whose file is not there is absent.

Departures from the release: gaps stay gaps instead of being filled with modes and means over all
subjects; scaling is fitted on training subjects only; of the variants the `variants` most variable
in training subjects are kept, not all.

Letters: n subjects or scans, f features, v voxels inside the mask.
"""

import dataclasses
import datetime
import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4 import seal
from m4.data import csv_files, foreign, identifiers, split
from m4.data.cohort import Cohort, Example, checksums, home, patient_number
from m4.data.option_checks import check
from m4.data.sets.adni.invented import invent  # noqa: F401
from m4.errors import DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

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
PARTS = "PTID_splits.json"
SPLITS = {"training": "train", "validation": "val", "testing": "test"}
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
CHUNK = 64  # subjects of the genome read at once
TITLES = {
    "image": "Brain MRI",
    "genomic": "Genotypes",
    "clinical": "Clinical tables",
    "biospecimen": "Biospecimens",
}
SIZES = {"CV": "mm³", "SV": "mm³", "TA": "mm"}  # ending of a FreeSurfer measure -> its unit
TASK = TaskSpec(
    "diagnosis",
    "multiclass",
    dim=3,
    labels=DIAGNOSES,
    title="Diagnosis",
    definition="Cognitively normal, mild cognitive impairment or dementia, as the study diagnosed "
    "the subject; those whose diagnosis changes are left out.",
)
ABOUT = About(
    title="Alzheimer's Disease Neuroimaging Initiative",
    source="A prospective study of volunteers who are followed with images, samples and tests, as "
    "merged by the authors of Flex-MoE.",
    setting="More than 50 research centres in the United States and Canada.",
    period="From 2004 on, in phases.",
    participants="Volunteers of about 55 to 90 years with one diagnosis that never changes and at "
    "least one of the modalities.",
    use="To study methods on data of which whole sources are missing: which of three diagnoses the "
    "study gave.",
    not_for="The diagnosis of patients, and predictions of who will decline.",
    limits="Volunteers of memory clinics, mostly white and of long schooling. What was measured "
    "depends on the phase of the study. Clinical tables hold test scores on which the diagnosis "
    "partly rests.",
)


def spec(
    *,
    image: str = "freesurfer",
    modalities: Sequence[str] = MODALITIES,
    variants: int = 1024,
    volume: tuple[int, ...] = (91, 109, 91, 1),
    fold: int = 0,
    num_folds: int = 0,
) -> DataSpec:
    """The schema. Widths of tables are those of the files; until they are read, 1.

    Args:
      image: "freesurfer", a table, or "volume".
      modalities: some of `MODALITIES`.
      variants: genotypes kept at most.
      volume: slices, rows, columns and channels of a volume; the mask's shape.
      fold: which of `num_folds` is tested.
      num_folds: of cross-validation by subject; 0 for the usual splits.

    Raises:
      ConfigError: one line per wrong option.
    """
    check(
        one=[("image", image, IMAGES)],
        some=[("modalities", modalities, MODALITIES)],
        least=[("variants", variants, 1)],
        also=split.fold_problems(fold, num_folds),
    )
    maps = ModalitySpec("image", "image", tuple(volume), title=TITLES["image"])
    volumes = {"image": maps} if image == "volume" else {}
    return DataSpec(
        tuple(
            volumes.get(name, ModalitySpec(name, "table", (1,), title=TITLES[name]))
            for name in MODALITIES
            if name in modalities
        ),
        (TASK,),
        about=ABOUT,
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per file or package that is asked for and not there."""
    data, root = spec(**options), Path(raw_dir) / FOLDER
    needed = {"label": "label.csv"}
    needed |= {name: FILES[name] for name in data.modality_names if name in FILES}
    missing = [f"{root / file}: missing" for file in needed.values() if not (root / file).exists()]
    image = options.get("image", "freesurfer")
    if "image" in data.modality_names:
        places = [f"image/{pattern}" for pattern in IMAGES[image]]
        missing += [f"{root / place}: missing" for place in places if not [*root.glob(place)]]
    return missing + _packages(data, image)


def _packages(data: DataSpec, image: str) -> list[str]:
    """One line per package that is needed and not installed."""
    missing = []
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
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}
    part_of, note = _splits(root / PARTS, label_of, seed, forms, **turn)
    flow.append(("in a split", len(part_of)))
    train = {who for who, part in part_of.items() if part == "train"}
    read = _Read(root, forms, flow, label_of, variants=options.get("variants", 1024))
    tables = [path for name in ("label.csv", PARTS) if (path := root / name).exists()]
    for modality in declared.modalities:
        paths = read.modality(modality, train)
        found = len(part_of.keys() & read.tables[modality.name].keys())
        flow.append((f"with {modality.name}", found))
        if read.tables[modality.name] and not found:
            raise DataError(
                f"{paths[0]}: holds none of the {len(part_of)} subjects of label.csv in a split."
                f" Are their PTID written alike? Else leave {modality.name} out of"
                " data.options.modalities"
            )
    kept = [who for who in part_of if any(who in table for table in read.tables.values())]
    flow.append(("with any modality", len(kept)))

    def examples(name: str) -> Iterator[Example]:
        return (read.example(who) for who in kept if part_of[who] == name)

    return Cohort(
        spec=dataclasses.replace(declared, modalities=tuple(read.specs)),
        splits={name: lambda name=name: examples(name) for name in FRACTIONS},
        sources=checksums(Path(raw_dir), [*tables, *read.files]),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes=note,
        fitted=read.fitted,
    )


def new(
    folder: Path,
    resolved: Mapping[str, Any],
    vocabularies: Mapping[str, Sequence[str]],
    *,
    spec: DataSpec,
    fitted: Mapping[str, Any],
) -> Cohort:
    """Other subjects as the split 'new', see the module.

    Their features and variants are those of training, by name. Raises DataError if no modality has
    its files, for a feature that is lacking, and as `cohort`.
    """
    del vocabularies
    root, image = home(folder, FOLDER), resolved.get("image", "freesurfer")
    if missing := _packages(spec, image):
        raise DataError(*missing)
    places: dict[str, tuple[str, ...]] = {
        name: (FILES[name],) for name in spec.modality_names if name in FILES
    }
    if "image" in spec.modality_names:
        places["image"] = tuple(f"image/{pattern}" for pattern in IMAGES[image])
    there = [name for name, own in places.items() if all(any(root.glob(p)) for p in own)]
    if not there:
        raise DataError(
            f"{root}: no {' nor '.join(place for own in places.values() for place in own)}"
        )
    forms, path, flow = identifiers.Forms(), root / "label.csv", []
    label_of, flow = _labels(path, forms) if path.exists() else ({}, flow)
    read = _Read(root, forms, flow, label_of, fitted=dict(fitted))
    for modality in spec.modalities:
        if modality.name in there:
            read.modality(modality, set())
    everybody = dict.fromkeys(who for table in read.tables.values() for who in table)
    files = [*([path] if path.exists() else []), *read.files]
    found = Cohort(spec, {}, checksums(folder, files), LICENCE, VERSION, flow)
    found.splits["new"] = lambda: (read.example(who) for who in everybody)
    found.warnings += [] if path.exists() else [f"{path}: is missing, so no labels"]
    return found


class _Read:
    """Subjects' tables and volumes, one modality after the other; what was fitted on the way."""

    def __init__(
        self,
        root: Path,
        forms: identifiers.Forms,
        flow: list,
        label_of: dict[str, int],
        *,
        variants: int = 0,
        fitted: dict[str, Any] | None = None,
    ):
        """`fitted` is what training took from its subjects; without, it is taken from these."""
        self.tables: dict[str, dict[str, np.ndarray]] = {}
        self.specs: list[ModalitySpec] = []
        self.files: list[Path] = []
        self.fitted, self._trained = {} if fitted is None else fitted, fitted is not None
        self._root, self._forms, self._flow, self._label_of = root, forms, flow, label_of
        self._variants = variants

    def modality(self, modality: ModalitySpec, train: set[str]) -> list[Path]:
        """Reads the files of one and returns them. Raises DataError, see `cohort`."""
        if modality.kind == "image":
            scale = None
            if self._trained and (scale := self.fitted.get("volume")) is None:
                raise DataError(
                    "the scale of the volumes is not known of models of before; train again"
                )
            table, paths, scale = _volumes(self._root / "image", modality.shape, train, scale)
            self.fitted["volume"] = scale
        else:
            counts: Counter[str] = Counter()
            wanted = tuple(modality.features or ()) if self._trained else None
            table, names, paths = _table(
                self._root, modality.name, train, self._variants, counts, wanted
            )
            self._flow += [(f"{modality.name}: {step}", count) for step, count in counts.items()]
            if not names:
                raise DataError(f"{paths[0]}: no column of numbers beside the subject's")
            modality = dataclasses.replace(modality, **_named(modality.name, names))
        _alike(table, self._forms.check, paths[-1])
        where = f"{paths[0]}: of the subjects in label.csv"
        identifiers.require_match(self._label_of, table, where)
        self.tables[modality.name] = table
        self.specs.append(modality)
        self.files += paths
        return paths

    def example(self, who: str) -> Example:
        """What is known of a subject."""
        return {
            "patient": patient_number(who),
            "key": (who, None),
            "inputs": {m: {"values": t[who]} for m, t in self.tables.items() if who in t},
            "targets": {"diagnosis": self._label_of.get(who)},
        }


def _named(name: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Shape and features of a table, with the units of FreeSurfer's measures."""
    found: dict[str, Any] = {"shape": (len(names),), "features": names}
    if name == "image":
        units = tuple(SIZES.get(n[-2:], "") for n in names)
        found |= {"titles": ("",) * len(names), "units": units}
    return found


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
    path: Path,
    label_of: dict[str, int],
    seed: int,
    forms: identifiers.Forms,
    *,
    fold: int,
    num_folds: int,
) -> tuple[dict[str, str], str]:
    """Subject -> split, and how it was split. Messages quote nothing: keys may be subjects."""
    turn = {"fold": fold, "num_folds": num_folds}
    if not path.exists():
        part_of = {who: split.part(who, FRACTIONS, seed, **turn) for who in label_of}
        return part_of, f"split by a keyed hash: there is no {PARTS}"
    try:
        lists = seal.load(path)
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
    if num_folds:
        ours = [who for who, part in part_of.items() if part != "test"]
        part_of = {who: split.part(who, FRACTIONS, seed, **turn) for who in ours}
    return {who: part for who, part in part_of.items() if who in label_of}, f"split by {path.name}"


def _table(
    root: Path,
    name: str,
    train: set[str],
    variants: int,
    counts: Counter,
    wanted: tuple[str, ...] | None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[Path]]:
    """Subject -> f32[f], names of the features, files; `wanted` are the features of training."""
    if name == "image":
        (path, *_) = sorted(root.glob(f"image/{IMAGES['freesurfer'][0]}"), reverse=True)
        table, names = _freesurfer(path, counts, wanted)
        return table, names, [path]
    path = root / FILES[name]
    if name == "genomic":
        table, names = _genome(path, train, variants, counts, wanted)
        return table, names, [path]
    header = csv_files.header(path)
    names = wanted or tuple(c for c in header[1:] if not c.upper().startswith(LEAKS))
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


def _freesurfer(
    path: Path, counts: Counter, wanted: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The latest volumes, thicknesses and areas of every subject."""
    header = csv_files.header(path)
    sizes = tuple(c for c in header if c.startswith("ST") and c.endswith(("CV", "TA", "SV")))
    names = wanted or sizes
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


def _genome(
    path: Path,
    train: set[str],
    variants: int,
    counts: Counter,
    wanted: tuple[str, ...] | None,
):
    """The variants that vary most in training subjects, in the order of the file, or `wanted`."""
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

        if wanted:
            place = {name: k for k, name in enumerate(names)}
            if lacking := len({*wanted} - {*place}):
                raise DataError(
                    f"{path}: lacks {lacking} of the {len(wanted)} variants of training"
                )
            table = {}
            for block_nf, wrong, who in blocks():
                counts["genotypes outside 0 to 2, gaps"] += wrong
                rows_nf = block_nf[:, [place[name] for name in wanted]].astype(np.float32)
                for one, row_f in zip(who, rows_nf, strict=True):
                    table.setdefault(one, []).append(row_f)
            return _agreed(table, counts), wanted
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


def _volumes(
    folder: Path, shape: tuple[int, ...], train: set[str], scale: Sequence[float] | None = None
):
    """The newest scan of every subject; files; one mean and deviation, of training's voxels.

    The last are those of `scale`, if it is known.
    """
    import nibabel

    (mask_file,) = sorted(folder.glob("*.nii.gz"))[:1]
    with foreign.sound(mask_file):
        image: Any = nibabel.load(mask_file)
        if np.prod(image.shape, dtype=float) != np.prod(shape):  # before it is unpacked
            raise DataError(
                f"{folder}: a mask of {image.shape} voxels and a volume of {shape} do not belong"
                " together"
            )
        mask = np.asarray(image.dataobj) == GREY
    scans = foreign.array(folder / "ADNI_G.npy")
    foreign.numbers(scans[:1], np.float32, where=f"{folder / 'ADNI_G.npy'}")
    lines = (folder / "ADNI_subj.txt").read_text("utf-8", errors="replace").split()
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
    files = [mask_file, folder / "ADNI_G.npy", folder / "ADNI_subj.txt"]
    if scale is not None:
        mean, std = scale
        return _Volumes(scans, number_of, mask, mean, std, shape), files, scale
    ours = [scans[number].astype(float) for who, number in number_of.items() if who in train]
    mean = np.mean([v.mean() for v in ours]) if ours else 0.0
    std = np.sqrt(np.mean([((v - mean) ** 2).mean() for v in ours])) if ours else 1.0
    mean, std = float(mean), float(max(std, 1e-6))
    return _Volumes(scans, number_of, mask, mean, std, shape), files, [mean, std]


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
