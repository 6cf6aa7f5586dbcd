"""Digits that are heard, seen, spelt and counted: a small benchmark in which modalities matter.

    free-spoken-digits/recordings/<digit>_<speaker>_<take>.wav     mono, 8 kHz, 16 bits

Every recording of the Free Spoken Digit Dataset (Jackson et al.) gets company of the same digit: an
image, a misspelt word and sums of another image (`written.py`). **The pairing is artificial**:
nobody spoke, drew and spelt a digit at once. What is real is that people differ: whole speakers
are tested, with images of writers that are theirs alone.

| modality | kind | what |
|---|---|---|
| `waveform` | signal | samples, root mean square 1 |
| `spectrogram` | signal | 40 mel bands every 10 ms |
| `pixels` | image | 8 x 8, half of a side blotted out, noise |
| `word` | text | the digit's English name, letters lost, wrong or swapped |
| `profile` | table | sums of rows and columns of another image, noise |

What a recording comes with depends on its name, and on how many people speak: each has the images
of other writers.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import split
from m4.data.cohort import Cohort, Example, checksums, hash64, home
from m4.data.fake import fresh
from m4.data.option_checks import check
from m4.data.sets.digits import recordings, written
from m4.data.sets.digits.recordings import Recording
from m4.errors import ConfigError, DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = (
    "recordings: Creative Commons Attribution-ShareAlike 4.0, Jackson et al., Free Spoken Digit"
    " Dataset; images: Creative Commons Attribution 4.0, Alpaydin and Kaynak 1998"
)
WHERE = (
    "download https://github.com/Jakobovski/free-spoken-digit-dataset (version 1.0.8 or later) as"
    " free-spoken-digits"
)
FOLDER = "free-spoken-digits"
SEEDED = False
INVENTED = {"digits": {}}
MOST_PARTS = 20  # of the images: so that each has some of every digit
SOURCES = {  # what is lost together -> its modalities
    "audio": ("waveform", "spectrogram"),
    "pixels": ("pixels",),
    "word": ("word",),
    "profile": ("profile",),
}
MODALITIES = ("waveform", "spectrogram", "pixels", "word", "profile")
NATIVE = {"jackson": 1, "theo": 1, "george": 0, "lucas": 0, "nicolas": 0, "yweweler": 0}
TASKS = (
    TaskSpec(
        "digit",
        "multiclass",
        dim=10,
        labels=written.WORDS,
        title="Which digit",
        definition="The digit that the speaker was asked to say, which all else shows, too.",
    ),
    TaskSpec(
        "parity",
        "binary",
        title="Odd",
        definition="Whether that digit is odd.",
    ),
    TaskSpec(
        "speaker_group",
        "binary",
        needs=("spectrogram",),
        title="American English",
        definition=(
            "Whether the speaker's English is American, as the data set's authors describe it, and"
            " not French, Belgian, German or Greek; of other speakers unknown. A few speakers teach"
            " nothing of an unseen one: it is asked to see that this is admitted."
        ),
    ),
)
ABOUT = About(
    title="Spoken, drawn and spelt digits",
    source="Recordings of the Free Spoken Digit Dataset; images of scikit-learn's load_digits.",
    setting="Volunteers with microphones of their own; no patients.",
    period="Recordings from 2016 on; images from 1995 or so.",
    participants="Every recording of the folder: a few men, each digit 50 times.",
    use="To see what each modality adds, and how a model fares without it.",
    not_for="Anything clinical, and claims about speech recognition.",
    limits="The pairing is artificial, and the other modalities are spoilt on purpose.",
)


def spec(
    *,
    fold: int = 0,
    num_folds: int = 4,
    val_fraction: float = 0.1,
    modalities: Sequence[str] = MODALITIES,
    tasks: Sequence[str] = tuple(task.name for task in TASKS),
    absent: float | Mapping[str, float] = 0.2,
    absent_in_test: bool = False,
    noise: float = 1.0,
    samples: int = 8000,
    frames: int = 100,
) -> DataSpec:
    """Five modalities, three tasks, and the speaker as a group.

    Args:
      fold: which of `num_folds` is tested.
      num_folds: parts of the speakers, in the order of their names.
      val_fraction: share of every training speaker's takes that only watch the run.
      modalities: names of `MODALITIES`.
      tasks: names of `TASKS`.
      absent: share of records that lack a source, one for all or by name of `SOURCES`; a record
        never lacks all.
      absent_in_test: whether test records lack some, too; else each is complete.
      noise: how spoilt images, words and sums are; 0 leaves them as they are.
      samples: of a waveform, 8,000 a second, from its middle.
      frames: of a spectrogram, 100 a second, from its middle.

    Raises ConfigError for wrong options.
    """
    by_source = absent if isinstance(absent, Mapping) else {}
    rates = by_source or {"": absent}
    also = [] if fold < num_folds else [f"data.options.fold: {fold} must be below {num_folds}"]
    check(
        some=[
            ("modalities", modalities, MODALITIES),
            ("tasks", tasks, [task.name for task in TASKS]),
            *([("absent", [*by_source], SOURCES)] if by_source else []),
        ],
        least=[("fold", fold, 0), ("num_folds", num_folds, 2), ("noise", noise, 0)]
        + [("samples", samples, 400), ("frames", frames, 8)],
        shares=[("val_fraction", val_fraction)]
        + [(f"absent.{name}".rstrip("."), rate) for name, rate in rates.items()],
        also=also,
    )
    chosen = tuple(m for m in _modalities(samples, frames) if m.name in modalities)
    asked = tuple(t for t in TASKS if t.name in tasks)
    if "spectrogram" not in modalities and "speaker_group" in tasks:
        raise ConfigError("data.options.tasks: speaker_group needs the modality spectrogram")
    hours = samples / recordings.RATE / 3600
    return DataSpec(chosen, asked, hours=hours, groups=("speaker",), about=ABOUT)


def _modalities(samples: int, frames: int) -> tuple[ModalitySpec, ...]:
    return (
        ModalitySpec("waveform", "signal", (samples, 1), title="Waveform at 8 kHz"),
        ModalitySpec(
            "spectrogram",
            "signal",
            (frames, recordings.BANDS),
            features=tuple(f"{hz:.0f} Hz" for hz in recordings.centres()),
            title="Log power in mel bands",
        ),
        ModalitySpec("pixels", "image", (1, 8, 8, 1), title="Drawn digit, partly blotted out"),
        ModalitySpec(
            "word",
            "text",
            (written.LONGEST,),
            dtype="int32",
            vocab=len(written.LETTERS) + 1,
            title="Misspelt name of the digit",
        ),
        ModalitySpec(
            "profile",
            "table",
            (len(written.SUMS),),
            features=written.SUMS,
            title="Sums of rows and columns of another drawing",
        ),
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line if there are no recordings in `raw_dir`."""
    folder = Path(raw_dir) / FOLDER / "recordings"
    return [] if any(folder.glob("*.wav")) else [f"{folder}: has no recordings (*.wav)"]


def cohort(raw_dir: Path | str, *, seed: int = 0, **options) -> Cohort:
    """Recordings of unseen speakers as `test`, of the others as `train` and `val`.

    Raises:
      ConfigError: more folds than speakers.
      DataError: two files of a take, or a wrong name; while iterating, for a file that is no mono
        WAV of 8 kHz and 16 bits.
    """
    data, root = spec(**options), Path(raw_dir)
    found = recordings.find(root / FOLDER / "recordings")
    speakers = sorted({recording.speaker for recording in found})
    fold, num_folds = options.get("fold", 0), options.get("num_folds", 4)
    if len(speakers) < num_folds:
        raise ConfigError(
            f"data.options.num_folds={num_folds}: there are recordings of {len(speakers)} speakers"
        )
    val = options.get("val_fraction", 0.1)

    def splits(recording: Recording) -> str:
        if speakers.index(recording.speaker) * num_folds // len(speakers) == fold:
            return "test"
        return split.assign(recording.path.stem, {"train": 1 - val, "val": val}, 0)

    def examples(name: str) -> Iterator[Example]:
        for recording in found:
            if splits(recording) == name:
                yield _example(data, recording, speakers, name, **options)

    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples(name) for name in ("train", "val", "test")},
        sources=checksums(root, [recording.path for recording in found]),
        licence=LICENCE,
        version=VERSION,
        flow=[("recordings", len(found)), ("speakers", len(speakers))],
        notes="a row and a 'patient' is a recording; images, words and sums are paired with it",
    )


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Other recordings, of anybody, as the split 'new', see `m4.data.apply`; all complete.

    They are in `folder`, its `recordings` or its `free-spoken-digits/recordings`. Raises DataError
    if there are none.
    """
    del vocabularies
    data, place = spec(**resolved), home(home(folder, FOLDER), "recordings")
    found = recordings.find(place)
    if not found:
        raise DataError(f"{place}: has no recordings (*.wav)")
    speakers = sorted({recording.speaker for recording in found})

    def examples() -> Iterator[Example]:
        for recording in found:
            example = _example(data, recording, speakers, "test", **resolved)
            yield {**example, "key": (example["patient"], None)}

    return Cohort(
        spec=data,
        splits={"new": examples},
        sources=checksums(folder, [recording.path for recording in found]),
        licence=LICENCE,
        version=VERSION,
        flow=[("recordings", len(found)), ("speakers", len(speakers))],
        notes="a row and a 'patient' is a recording; images, words and sums are paired with it",
    )


def _example(
    data: DataSpec,
    recording: Recording,
    speakers: list[str],
    split: str,
    *,
    absent: float | Mapping[str, float] = 0.2,
    absent_in_test: bool = False,
    noise: float = 1.0,
    **options,
) -> Example:
    name, digit = recording.path.stem, recording.digit
    lost = _lost(name, absent) if split != "test" or absent_in_test else set()
    kept = {m for source, names in SOURCES.items() if source not in lost for m in names}
    sound_N = recordings.read(recording.path)
    seen, counted = _images(recording, speakers)
    makers = {
        "waveform": lambda rng, length: recordings.waveform(sound_N, length),
        "spectrogram": lambda rng, length: recordings.spectrogram(sound_N, length),
        "pixels": lambda rng, _: written.pixels(rng, seen, 0.5 * noise),
        "word": lambda rng, _: written.word(rng, digit, min(1.0, 0.5 * noise)),
        "profile": lambda rng, _: written.profile(rng, counted, noise),
    }
    inputs = {
        m.name: {"values": makers[m.name](_draws(name, m.name), m.length)}
        for m in data.modalities
        if m.name in kept
    }
    found = {"digit": digit, "parity": digit % 2, "speaker_group": NATIVE.get(recording.speaker)}
    return {
        "patient": hash64(name) >> 1,
        "inputs": inputs,
        "targets": {task: found[task] for task in data.task_names},
        "groups": {"speaker": recording.speaker},
    }


def _lost(name: str, absent: float | Mapping[str, float]) -> set[str]:
    """The sources that a record lacks, by its name; one that chance picks stays in any case."""
    luck = _draws(name, "absent").random(len(SOURCES))
    rates = absent if isinstance(absent, Mapping) else dict.fromkeys(SOURCES, absent)
    lost = {s for s, draw in zip(SOURCES, luck, strict=True) if draw < rates.get(s, 0.0)}
    return lost if len(lost) < len(SOURCES) else lost - {[*SOURCES][int(luck.argmax())]}


def _images(recording: Recording, speakers: list[str]) -> tuple[int, int]:
    """Numbers of the image that is shown and of another whose sums are, of writers of one part."""
    parts = min(len(speakers), MOST_PARTS)
    person = speakers.index(recording.speaker) % parts
    own = written.of_person(person, parts, recording.digit)
    seen = own[recording.take % len(own)]
    others = own[own != seen]
    return int(seen), int(_draws(recording.path.stem, "image").choice(others))


def _draws(name: str, what: str) -> np.random.Generator:
    return np.random.default_rng(hash64(f"{name}/{what}"))


def invent(folder: Path, *, patients: int, seed: int) -> Path:
    """`free-spoken-digits/` of four voices, `patients` recordings in all.

    A digit is two tones; a voice is higher or lower, and nobody is quite alike twice.
    """
    root, rng = fresh(folder / FOLDER), np.random.default_rng(seed)
    (root / "recordings").mkdir()
    for number in range(max(patients, 40)):
        digit, voice, take = number % 10, number // 10 % 4, number // 40
        seconds = np.arange(int(rng.uniform(0.2, 0.6) * recordings.RATE)) / recordings.RATE
        pitch = (1 + 0.1 * voice) * rng.uniform(0.97, 1.03)
        tones = [
            np.sin(2 * np.pi * hz * pitch * seconds)
            for hz in (300 + 90 * digit, 2500 - 150 * digit)
        ]
        sound = 0.2 * sum(tones) + 0.02 * rng.standard_normal(len(seconds))
        name = f"{digit}_{('ada', 'bea', 'cy', 'dan')[voice]}_{take}.wav"
        recordings.write(root / "recordings" / name, sound)
    return root
