"""CMU-MOSI and CMU-MOSEI: sentiment of video segments from words, voice and face.

**Layout only**: read on invented files, never yet on the real ones.

Zadeh et al. 2016 and 2018, as word-aligned features of 50 positions. They are passed around as
Python pickles, which can run any code when read; m4 reads none. `docs/datasets.md` has the lines
that turn one, once, into

    cmu-mosi/{train,valid,test}.npz      (or cmu-mosei/)
        text, audio, vision [n, 50, features], labels [n, 1, 1], id [n] or [n, columns]

The published splits are kept; with `num_folds` the videos of train and valid are tested in turns
and those of test are in no fold. New segments for a trained model (`--on`) are those of all `*.npz`
of a folder, with `labels` or without.

A video is the unit of the bootstrap. Positions that are zero in all three modalities are padding;
one that is zero in a single modality is a gap there. Values that are not finite (COVAREP has some)
are gaps, too, and counted. `times` are positions, not hours.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import foreign, split
from m4.data.cohort import Cohort, Example, checksums, home, patient_number
from m4.data.fake import fresh
from m4.data.option_checks import check
from m4.errors import ConfigError, DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "CMU Multimodal SDK terms, research only; the videos belong to their makers"
WHERE = "features: https://github.com/pliang279/MultiBench; docs/datasets.md says how to convert"
FOLDERS = {"mosi": "cmu-mosi", "mosei": "cmu-mosei"}
MODALITIES = ("text", "audio", "vision")
PARTS = {"train": "train", "val": "valid", "test": "test"}
FRACTIONS = {"train": 0.85, "val": 0.15}  # in a fold, of those who are not tested
POSITIONS = 50
MAX_MEMBERS, MAX_BYTES = 64, 1 << 35  # of a file; four times those of CMU-MOSEI as float64
INVENTED = {"mosi": {}, "mosei": {"dataset": "mosei"}}
SEGMENTS = 3  # of an invented video
TITLES = {"text": "Words", "audio": "Voice", "vision": "Face"}
TASKS = (
    TaskSpec(
        "sentiment",
        "regression",
        title="Sentiment",
        unit="points, -3 to 3",
        definition="How negative (-3) or positive (3) raters found what is said in the segment, on "
        "average.",
    ),
    TaskSpec(
        "positive",
        "binary",
        title="Not negative",
        definition="The sentiment is 0 or more.",
    ),
)
ABOUTS = {
    "mosi": About(
        title="CMU-MOSI",
        source="Videos of an online platform in which a speaker gives an opinion to the camera, "
        "cut into 2,199 segments.",
        participants="93 videos of 89 English speakers, chosen by the authors.",
    ),
    "mosei": About(
        title="CMU-MOSEI",
        source="Videos of an online platform in which a speaker gives an opinion to the camera, "
        "cut into more than 23,000 segments.",
        participants="About 1,000 English speakers on 250 topics, chosen by the authors.",
    ),
}
ABOUT = {
    "setting": "Made by the speakers themselves; no patients.",
    "period": "Published on the platform before 2016 (CMU-MOSI) or 2018 (CMU-MOSEI).",
    "use": "To study methods on words, voice and face: what a segment's raters said.",
    "not_for": "Judging a person's feelings, and anything clinical.",
    "limits": "What people show a camera, in one language. The features come from tools of that "
    "time. Segments of one video are alike, so a video is the unit.",
}


def spec(
    *, dataset: str = "mosi", positions: int = POSITIONS, fold: int = 0, num_folds: int = 0
) -> DataSpec:
    """Three series and two tasks; widths are those of the files, until they are read 1.

    `sentiment` is the score in -3..3, `positive` whether it is at least 0. `fold` is which of
    `num_folds` is tested, 0 for the published splits. Raises ConfigError for an unknown data set.
    """
    check(also=split.fold_problems(fold, num_folds))
    if dataset not in FOLDERS or positions < 1:
        raise ConfigError(
            f"data.options: dataset={dataset!r} is none of {', '.join(FOLDERS)}, or"
            f" positions={positions} below 1"
        )
    return DataSpec(
        tuple(ModalitySpec(n, "series", (positions, 1), title=TITLES[n]) for n in MODALITIES),
        TASKS,
        hours=float(positions),
        about=dataclasses.replace(ABOUTS[dataset], **ABOUT),
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per file that is not in `raw_dir`."""
    spec(**options)
    return [f"{path}: missing" for path in _paths(raw_dir, options) if not path.exists()]


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Segments in the order of the files. Raises DataError for a damaged or misshapen file."""
    declared, paths = spec(**options), _paths(raw_dir, options)
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}
    missing = missing_files(raw_dir, **options)
    if missing:
        raise DataError(*missing)
    positions = options.get("positions", POSITIONS)
    flow: list[tuple[str, int]] = []
    first = _load(paths[0], positions)

    def examples(name: str) -> Iterator[Example]:
        if not turn["num_folds"]:
            yield from _segments(paths[[*PARTS].index(name)], positions, flow)
            return
        for example in (e for path in paths for e in _segments(path, positions, flow)):
            if split.part(example["patient"], FRACTIONS, seed, **turn) == name:
                yield example

    splits = {name: lambda name=name: examples(name) for name in PARTS}
    return _cohort(Path(raw_dir), _read(declared, first), splits, paths, flow)


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Segments of other videos as the split 'new', see the module."""
    del vocabularies
    declared, root = spec(**resolved), home(folder, FOLDERS[resolved.get("dataset", "mosi")])
    positions, paths = resolved.get("positions", POSITIONS), sorted(root.glob("*.npz"))
    if not paths:
        raise DataError(f"{root}: no .npz file of segments")
    flow: list[tuple[str, int]] = []
    first = _load(paths[0], positions, labelled=False)

    def examples() -> Iterator[Example]:
        for path in paths:
            yield from _segments(path, positions, flow, labelled=False)

    return _cohort(folder, _read(declared, first), {"new": examples}, paths, flow)


def _read(declared: DataSpec, arrays: Mapping[str, np.ndarray]) -> DataSpec:
    """The schema with the widths of a file."""
    modalities = tuple(
        dataclasses.replace(m, shape=(*m.shape[:-1], arrays[m.name].shape[-1]))
        for m in declared.modalities
    )
    return dataclasses.replace(declared, modalities=modalities)


def _cohort(raw_dir: Path, data: DataSpec, splits, paths: list[Path], flow: list) -> Cohort:
    return Cohort(
        spec=data,
        splits=splits,
        sources=checksums(raw_dir, paths),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes="times are word positions",
    )


def _paths(raw_dir, options) -> list[Path]:
    """Files of the splits; with folds those of training and validation."""
    folder = Path(raw_dir) / FOLDERS[options.get("dataset", "mosi")]
    parts = [*PARTS.values()]
    return [folder / f"{part}.npz" for part in (parts[:2] if options.get("num_folds") else parts)]


def _segments(
    path: Path, positions: int, flow: list, *, labelled: bool = True
) -> Iterator[Example]:
    arrays = _load(path, positions, labelled=labelled)
    gaps = sum(int((~np.isfinite(arrays[n])).sum()) for n in MODALITIES)
    name = {part: name for name, part in PARTS.items()}.get(path.stem, path.stem)
    flow.extend([(f"{name}: segments", len(arrays["labels"])), (f"{name}: not finite", gaps)])
    for row in range(len(arrays["labels"])):
        yield _example(arrays, row)


def _load(path: Path, positions: int, *, labelled: bool = True) -> dict[str, np.ndarray]:
    def check(sizes: Sequence[int]) -> None:
        if len(sizes) > MAX_MEMBERS or sum(sizes) > MAX_BYTES:
            raise DataError(
                f"{path}: {len(sizes)} arrays of {sum(sizes):,} bytes, the limits are"
                f" {MAX_MEMBERS} and {MAX_BYTES:,}"
            )

    arrays = foreign.members(path, (*MODALITIES, "id", "labels"), check)
    lacking = {*MODALITIES, "id", *(["labels"] if labelled else [])} - {*arrays}
    if lacking or any(not array.ndim or 0 in array.shape[1:] for array in arrays.values()):
        what = (
            f"no {', '.join(sorted(lacking))}"
            if lacking
            else "an empty one, or one without an axis"
        )
        raise DataError(f"{path}: no arrays as docs/datasets.md says ({what})")
    num = len(arrays.setdefault("labels", np.full(len(arrays["id"]), np.nan)))
    if len(arrays["id"]) != num:
        raise DataError(f"{path}: {len(arrays['id'])} entries of id, {num} of labels")
    arrays["id"] = _texts(arrays["id"], path)
    label_N = arrays["labels"][(..., *[0] * (arrays["labels"].ndim - 1))]
    arrays["labels"] = foreign.numbers(label_N, np.float64, where=f"{path}: labels")
    for name in MODALITIES:
        if arrays[name].ndim != 3 or arrays[name].shape[:2] != (num, positions):
            raise DataError(f"{path}: {name} has shape {arrays[name].shape}, not {num, positions}")
        arrays[name] = foreign.numbers(arrays[name], np.float32, where=f"{path}: {name}")
    return arrays


def _texts(ids: np.ndarray, path: Path) -> np.ndarray:
    """str[n] or str[n, columns], as Python's objects."""
    if ids.ndim > 2:
        raise DataError(f"{path}: id has shape {ids.shape}, not [n] or [n, columns]")
    try:
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in ids.ravel()]
        "".join(texts).encode()
    except ValueError:
        raise DataError(f"{path}: an id is not UTF-8") from None
    return np.array(texts, object).reshape(ids.shape)


def _example(arrays: dict[str, np.ndarray], row: int) -> Example:
    inputs = {}
    for name in MODALITIES:
        value_Tf = arrays[name][row]
        there = (np.nan_to_num(value_Tf) != 0).any(-1)
        value_Tf = np.where(np.isfinite(value_Tf), value_Tf, np.nan)
        inputs[name] = {"values": value_Tf[there], "times": np.flatnonzero(there)}
    label = float(arrays["labels"][row])
    video, segment = _names(arrays["id"][row])
    return {
        "patient": patient_number(video),
        "key": (video, None, segment),
        "inputs": inputs,
        "targets": {"sentiment": label, "positive": float(label >= 0)}
        if np.isfinite(label)
        else {},
    }


def _names(name) -> tuple[str, str]:
    """The video of a segment, and it: 'video$_$5', 'video[5]' or [video, start, end]."""
    texts = [*np.atleast_1d(name)]
    return texts[0].partition("$_$")[0].partition("[")[0], " ".join(texts)


def invent(folder: Path, *, patients: int, seed: int, dataset: str = "mosi") -> Path:
    """Sentences of 1 to 50 words, padded in front; some without voice or face."""
    root, rng = fresh(folder / FOLDERS[dataset]), np.random.default_rng(seed)
    video = 0
    for part, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        number = max(int(share * patients), 1) * SEGMENTS
        labels = rng.uniform(-3, 3, number)
        arrays: dict[str, Any] = {"labels": labels[:, None, None]}
        length = rng.integers(1, 51, number)
        word = np.arange(50) >= 50 - length[:, None]
        for modality, width in (("text", 300), ("audio", 74), ("vision", 35)):
            values = rng.normal(labels[:, None, None] * (np.arange(width) < 4), 1)
            values = values + rng.normal(0, 0.1, (number, 50, width))
            there = (rng.random(number) < 0.85) | (modality == "text")
            arrays[modality] = values * word[..., None] * there[:, None, None]
        arrays["audio"][0, -1, 0] = -np.inf
        arrays["id"] = np.array([f"video{video + k // SEGMENTS}$_${k}" for k in range(number)])
        video += number // SEGMENTS
        np.savez(root / f"{part}.npz", **arrays)
    return root
