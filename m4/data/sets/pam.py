"""PAM: eight daily activities from wearable sensors, as prepared by Raindrop.

**Layout only**: read on invented files, never yet on the real ones.

Reiss and Stricker: *PAMAP2* (2012); Zhang et al.: *Raindrop* (ICLR 2022) cut it into 5,333
windows of 600 steps (6 s at 100 Hz, half overlapping) of 17 sensors; FuseMoE takes every sensor as
a modality.

    PAMdata/processed_data/PTdict_list.npy      [5333, 600, 17] numbers
    PAMdata/processed_data/arr_outcomes.npy     [5333, 1] classes 0 to 7

The files do not say whose window it is. Raindrop splits single windows at random 8 : 1 : 1: since
neighbours share half their samples, test windows are then partly in training. Here whole blocks
of `block` consecutive windows are assigned (`block=1` for theirs); a block is the unit of the
bootstrap. A value of exactly 0 is a gap, as in Raindrop. New windows for a trained model (`--on`)
are a `PTdict_list.npy`, with outcomes or without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import foreign, split
from m4.data.cohort import Cohort, Example, checksums, home
from m4.data.fake import fresh
from m4.data.option_checks import check
from m4.errors import DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "Creative Commons Attribution 4.0; cite Reiss and Stricker 2012"
WHERE = "download PAM from https://doi.org/10.6084/m9.figshare.19514347 and unpack PAMdata/"
FOLDER = "PAMdata/processed_data"
VALUES, CLASSES = "PTdict_list.npy", "arr_outcomes.npy"
SENSORS, STEPS, RATE = 17, 600, 100.0  # RATE in Hz
INVENTED = {"pam": {}}
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
TASK = TaskSpec(
    "activity",
    "multiclass",
    dim=8,
    title="Activity",
    definition="Which of eight daily activities was done in the window: those of PAMAP2 with most "
    "records. The files number them, 0 to 7, and do not name them.",
)
ABOUT = About(
    title="PAM: physical activities from wearable sensors",
    source="PAMAP2: inertial sensors on wrist, chest and ankle, and a heart rate monitor, while "
    "activities were done to order; cut into windows by the authors of Raindrop.",
    setting="A research institute in Germany; no patients.",
    period="Published in 2012.",
    participants="Eight of nine healthy adults of PAMAP2, most of them men in their twenties.",
    use="To study methods on irregular series of which sensors are missing.",
    not_for="Anything clinical, and claims about other people: nobody is left out of training.",
    limits="The files do not say whose window it is, nor what each of the 17 sensors is, so "
    "neither has a unit here. Neighbouring windows share half of their samples.",
)


def spec(
    *, steps: int = STEPS, every: int = 1, block: int = 20, fold: int = 0, num_folds: int = 0
) -> DataSpec:
    """Seventeen series of one feature, task `activity`.

    Args:
      steps: of a window, before thinning.
      every: keep one step in so many.
      block: consecutive windows that stay together.
      fold: which of `num_folds` is tested.
      num_folds: of cross-validation by block; 0 for the shares of `FRACTIONS`.

    Raises ConfigError for a number below 1 and a fold that is none.
    """
    least = [("steps", steps, 1), ("every", every, 1), ("block", block, 1)]
    check(least=least, also=split.fold_problems(fold, num_folds))
    shape = (-(-steps // every), 1)
    return DataSpec(
        tuple(
            ModalitySpec(f"sensor_{s:02d}", "series", shape, title=f"Sensor {s}")
            for s in range(SENSORS)
        ),
        (TASK,),
        hours=steps / RATE / 3600,
        about=ABOUT,
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per file that is not in `raw_dir`."""
    root = Path(raw_dir) / FOLDER
    return [f"{root / n}: missing" for n in (VALUES, CLASSES) if not (root / n).exists()]


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Windows in the order of the file. Raises DataError for files of another shape."""
    root = Path(raw_dir) / FOLDER
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}
    files, windows = _windows(root, spec(**options), options)

    def examples(name: str) -> Iterator[Example]:
        for example in windows():
            if split.part(example["patient"], FRACTIONS, seed, **turn) == name:
                yield example

    splits = {name: lambda name=name: examples(name) for name in FRACTIONS}
    return _cohort(Path(raw_dir), options, splits, files)


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Other windows as the split 'new', see the module; each goes by its number in the file."""
    del vocabularies
    root = home(home(folder, FOLDER), "processed_data")
    if not (root / VALUES).exists():
        raise DataError(f"{root / VALUES}: missing")
    files, windows = _windows(root, spec(**resolved), resolved, labelled=(root / CLASSES).exists())

    def examples() -> Iterator[Example]:
        for number, example in enumerate(windows()):
            yield {**example, "key": (number, None)}

    return _cohort(folder, resolved, {"new": examples}, files)


def _cohort(raw_dir: Path, options: Mapping[str, Any], splits, files: list[Path]) -> Cohort:
    return Cohort(
        spec=spec(**options),
        splits=splits,
        sources=checksums(raw_dir, files),
        licence=LICENCE,
        version=VERSION,
        flow=[("windows", len(foreign.array(files[0])))],
        notes="the unit of splits and of the bootstrap is a block of"
        f" {options.get('block', 20)} windows",
    )


def _windows(
    root: Path, data: DataSpec, options: Mapping[str, Any], *, labelled: bool = True
) -> tuple[list[Path], Callable[[], Iterator[Example]]]:
    """The files, and what starts an iterator over their windows. Raises DataError, see `cohort`."""
    steps, every = options.get("steps", STEPS), options.get("every", 1)
    block, files = options.get("block", 20), [root / VALUES]
    values = foreign.array(root / VALUES)
    label_N = np.full(len(values), np.nan)
    if labelled:
        files = [*files, root / CLASSES]
        classes = foreign.array(root / CLASSES).reshape(-1)
        label_N = foreign.numbers(classes, np.float64, where=f"{root / CLASSES}: a label")
    if values.shape != (len(label_N), steps, SENSORS):
        raise DataError(
            f"{root / VALUES}: {values.shape} values for {len(label_N)} labels, expected"
            f" [{len(label_N)}, {steps}, {SENSORS}]"
        )
    if labelled and not np.isin(label_N, range(8)).all():
        raise DataError(f"{root / CLASSES}: a label is none of 0 to 7")
    hours_T = np.arange(0, steps, every) / RATE / 3600

    def windows() -> Iterator[Example]:
        for number, label in enumerate(label_N):
            where = f"{root / VALUES}, window {number}"
            window = np.array(foreign.numbers(values[number, ::every], np.float32, where=where))
            window[window == 0] = np.nan
            inputs = {}
            for s, modality in enumerate(data.modality_names):
                there = ~np.isnan(window[:, s])
                inputs[modality] = {"values": window[there, s, None], "times": hours_T[there]}
            targets = {"activity": int(label) if labelled else None}
            yield {"patient": number // block, "inputs": inputs, "targets": targets}

    return files, windows


def invent(folder: Path, *, patients: int, seed: int) -> Path:
    """`PAMdata/`: sensor s swings faster for higher classes; some sensors are silent."""
    root, rng = fresh(folder / "PAMdata"), np.random.default_rng(seed)
    label_n = rng.integers(0, 8, 10 * patients)
    steps_T = np.arange(600) / 100
    phase = rng.uniform(0, 6, (len(label_n), 1, 17))
    waves = np.sin((1 + label_n)[:, None, None] * steps_T[:, None] + phase)
    waves *= rng.random((len(label_n), 1, 17)) < 0.9
    (root / "processed_data").mkdir()
    np.save(root / "processed_data" / "PTdict_list.npy", waves)
    np.save(root / "processed_data" / "arr_outcomes.npy", label_n[:, None].astype(float))
    return root
