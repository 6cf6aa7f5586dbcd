"""CMU-MOSI and CMU-MOSEI: sentiment of video segments from words, voice and face.

**Layout only**: read on invented files, never yet on the real ones.

Zadeh et al. 2016 and 2018, as word-aligned features of 50 positions. They are passed around as
Python pickles, which can run any code when read; m4 reads none. `docs/datasets.md` has the lines
that turn one, once, into

    cmu-mosi/{train,valid,test}.npz      (or cmu-mosei/)
        text, audio, vision [n, 50, features], labels [n, 1, 1], id [n] or [n, columns]

The published splits are kept; a video is the unit of the bootstrap. Positions that are zero in all
three modalities are padding; one that is zero in a single modality is a gap there. Values that are
not finite (COVAREP has some) are gaps, too, and counted. `times` are positions, not hours.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4.data.cohort import Cohort, Example, checksums, patient_number
from m4.data.fake import fresh
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "CMU Multimodal SDK terms, research only; the videos belong to their makers"
WHERE = "features: https://github.com/pliang279/MultiBench; docs/datasets.md says how to convert"
FOLDERS = {"mosi": "cmu-mosi", "mosei": "cmu-mosei"}
MODALITIES = ("text", "audio", "vision")
PARTS = {"train": "train", "val": "valid", "test": "test"}
POSITIONS = 50
MAX_MEMBERS, MAX_BYTES = 64, 1 << 35  # of a file; four times those of CMU-MOSEI as float64
INVENTED = {"mosi": {}, "mosei": {"dataset": "mosei"}}
SEGMENTS = 3  # of an invented video


def spec(*, dataset: str = "mosi", positions: int = POSITIONS) -> DataSpec:
    """Three series and two tasks; widths are those of the files, until they are read 1.

    `sentiment` is the score in -3..3, `positive` whether it is at least 0. Raises ConfigError for
    an unknown data set.
    """
    if dataset not in FOLDERS or positions < 1:
        raise ConfigError(
            f"data.options: dataset={dataset!r} is none of {', '.join(FOLDERS)}, or"
            f" positions={positions} below 1"
        )
    return DataSpec(
        tuple(ModalitySpec(name, "series", (positions, 1)) for name in MODALITIES),
        (TaskSpec("sentiment", "regression"), TaskSpec("positive", "binary")),
        hours=float(positions),
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per file that is not in `raw_dir`."""
    spec(**options)
    return [f"{path}: missing" for path in _paths(raw_dir, options).values() if not path.exists()]


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Segments in the order of the files. Raises DataError for a damaged or misshapen file."""
    del seed  # the published splits
    declared, paths = spec(**options), _paths(raw_dir, options)
    missing = missing_files(raw_dir, **options)
    if missing:
        raise DataError(*missing)
    positions = options.get("positions", POSITIONS)
    first = _load(paths["train"], positions)
    data = DataSpec(
        tuple(ModalitySpec(n, "series", (positions, first[n].shape[-1])) for n in MODALITIES),
        declared.tasks,
        hours=declared.hours,
    )
    flow: list[tuple[str, int]] = []

    def examples(name: str) -> Iterator[Example]:
        arrays = first if name == "train" else _load(paths[name], positions)
        gaps = sum(int((~np.isfinite(arrays[n])).sum()) for n in MODALITIES)
        flow.extend([(f"{name}: segments", len(arrays["labels"])), (f"{name}: not finite", gaps)])
        for row in range(len(arrays["labels"])):
            yield _example(arrays, row)

    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples(name) for name in PARTS},
        sources=checksums(Path(raw_dir), paths.values()),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes="times are word positions",
    )


def _paths(raw_dir, options) -> dict[str, Path]:
    folder = Path(raw_dir) / FOLDERS[options.get("dataset", "mosi")]
    return {name: folder / f"{part}.npz" for name, part in PARTS.items()}


def _load(path: Path, positions: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as members:
            sizes = [member.file_size for member in members.infolist()]
        if len(sizes) > MAX_MEMBERS or sum(sizes) > MAX_BYTES:
            raise DataError(
                f"{path}: {len(sizes)} arrays of {sum(sizes):,} bytes, the limits are"
                f" {MAX_MEMBERS} and {MAX_BYTES:,}"
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*MODALITIES, "labels", "id")}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no arrays as docs/datasets.md says ({error})") from None
    num = len(arrays["labels"])
    arrays["labels"] = arrays["labels"].reshape(num, -1)[:, 0]
    for name in MODALITIES:
        if arrays[name].ndim != 3 or arrays[name].shape[:2] != (num, positions):
            raise DataError(f"{path}: {name} has shape {arrays[name].shape}, not {num, positions}")
    return arrays


def _example(arrays: dict[str, np.ndarray], row: int) -> Example:
    values = {name: np.asarray(arrays[name][row], np.float32) for name in MODALITIES}
    inputs = {}
    for name, value_Tf in values.items():
        there = (np.nan_to_num(value_Tf) != 0).any(-1)
        value_Tf = np.where(np.isfinite(value_Tf), value_Tf, np.nan)
        inputs[name] = {"values": value_Tf[there], "times": np.flatnonzero(there)}
    label = float(arrays["labels"][row])
    return {
        "patient": patient_number(_video(arrays["id"][row])),
        "inputs": inputs,
        "targets": {"sentiment": label, "positive": float(label >= 0)}
        if np.isfinite(label)
        else {},
    }


def _video(name) -> str:
    """The video of a segment: 'video$_$5', 'video[5]' or [video, start, end]."""
    text = np.atleast_1d(name)[0]
    text = text.decode() if isinstance(text, bytes) else str(text)
    return text.partition("$_$")[0].partition("[")[0]


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
