"""What a data set module hands to the builder.

A data set, a module of `m4/data/sets` (or any importable one), provides

    VERSION: str; LICENCE: str; WHERE: str                  # WHERE: one line, where to get it
    SEEDED: bool                                            # optional; False: ignores the seed
    def spec(**options) -> DataSpec
    def missing_files(raw_dir, **options) -> list[str]      # [] when complete, no heavy import
    def cohort(raw_dir, *, seed, **options) -> Cohort
    def resolved(**options) -> dict                         # optional: what the options stand for,
                                                            # in JSON types (content of a file)
    def everyone(**options) -> dict                         # optional: see `m4.data.held_in`
    def new(folder, resolved, vocabularies) -> Cohort       # optional: see `m4.data.apply`
    ELSEWHERE: tuple[str, ...]                              # optional: options that say where files
                                                            # are, which may differ for new data
    def download(raw_dir)                                   # optional: of open data, verified
    INVENTED: dict                                          # optional: name -> options of
    def invent(folder, *, patients, seed, **options)        # small files, see `m4.data.fake`

One record is an `Example`, ragged and NumPy only:

    {'patient': int,                                        # unit of splits and of the bootstrap
     'inputs': {modality: payload},                         # absent modality: no key
     'targets': {task: value or None},                      # None: no label, NaN: one label missing
     'key': (subject, prediction time[, record]),           # optional: see `m4.data.index`
     'groups': {column: category or None}}                  # optional: see `m4.data.groups`

    series   {'values': [t, f] with NaN where not observed, 'times': [t] hours}
    vectors  {'values': [n, d], 'times': [n] hours}
    table    {'values': [f] with NaN where not observed}
    codes, text  {'values': int[n]}
    image    {'values': [v, h, w, c]}
    signal   {'values': [t, c]}

A payload without a single row, or without a single observed value, counts as absent.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from m4 import regular
from m4.data import identifiers
from m4.errors import DataError
from m4.specs import DataSpec

Example = dict[str, Any]


@dataclasses.dataclass
class Cohort:
    """Splits of a data set and where they came from.

    `splits` maps 'train', 'val' and 'test' to functions that start a fresh iterator over that
    split's examples in bounded memory. `flow` holds (step, count) pairs and may be filled while a
    split is iterated. So may `vocabularies`: modality -> tokens in the order of their ids, from id
    1 on, where ids were counted on training examples. `fitted` is what else was taken from those,
    in JSON types; it is kept for `new`. `sources` maps file names relative to the raw folder to
    their 'bytes' and 'sha256' (see `checksums`). `joining` is called before the
    first example and says, a line each, how the files match; it raises DataError if they don't.
    `warnings` are then known, too. `absent` are files, named like those of `sources`, that would
    have been read and are not there: should they come, the cohort is made again.
    """

    spec: DataSpec
    splits: dict[str, Callable[[], Iterator[Example]]]
    sources: dict[str, dict[str, Any]]
    licence: str
    version: str
    flow: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    vocabularies: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""
    joining: Callable[[], list[str]] = list
    warnings: list[str] = dataclasses.field(default_factory=list)
    absent: list[str] = dataclasses.field(default_factory=list)


def home(folder: Path, name: str) -> Path:
    """A data set's own folder `name` in one of raw files, or that itself, for it may be meant."""
    return folder / name if (folder / name).is_dir() else folder


def patient_number(text: str) -> int:
    """A patient's identifier as an integer: itself if it is one, else a hash of 63 bits.

    Raises DataError for a number that is none of 64 bits.
    """
    try:
        found = identifiers.canonical(text)
    except ValueError as error:
        raise DataError(f"the identifier of a patient {error}") from None
    return found if isinstance(found, int) else hash64(found or "") >> 1


def hash64(text: str) -> int:
    """A stable hash of a text, an integer of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def checksums(root: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file, keyed by its path relative to `root`, in sorted order.

    Raises DataError for a file that cannot be read.
    """
    found = {}
    for path in sorted(files):
        try:
            digest = sha256(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        found[path.relative_to(root).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": digest,
        }
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with regular.opened(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
