"""Raw files -> records, once.

`prepare` builds `data_dir/<name>/<fingerprint>/`, readable by its owner only:

    manifest.json   see `m4.data.manifest`
    LICENCE.txt     terms of the source data, which hold for the records too
    stamps.json     size and time stamp of every source file when it was hashed, and what lay beside
    records/        ArrayRecord files
    vocabulary.json tokens of every modality whose ids were counted on training records, from id 1
    index/          see `m4.data.index`; only of data sets that predictions are joined with
    groups/         see `m4.data.groups`; only of data sets that have group columns

The folder is built under a temporary name and renamed when complete, under a lock, so that a
killed build leaves nothing that looks finished and two processes do not build the same thing twice.
Where there are no locks they may, each in a folder of its own: the first to be done stays.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from m4 import atomic, seal
from m4.data import data_sets, groups, homes, index, shift, temporary
from m4.data import manifest as manifests
from m4.data import record as records
from m4.data.cohort import Cohort, Example, sha256
from m4.data.held_in import HELD_OUT, hold_in
from m4.data.leave_out import leave_out as left_out
from m4.data.leave_out import named
from m4.data.set_aside import set_aside
from m4.errors import HANDLES, DataError, SaveError, UserError, place, shortage

Progress = Callable[[str, int], None]  # called with the split and its records so far
Report = Callable[[dict[str, Any]], None]  # called with the manifest of what was just built
Say = Callable[[list[str]], None]  # called with how the files match, before records are made
Stamps = dict[str, dict[str, Any]]  # "files" -> a stamp each, "folders" -> a digest each
REPORT_EVERY = 200
TRIES = 3  # of a name that others take at the same time
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
CANNOT_READ = (errno.EIO, errno.ESTALE)
SHORT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, *HANDLES)  # blames no source file
STAMPS = "stamps.json"
SMALL = 1 << 24  # bytes of a file that is hashed at every start
VOCABULARY = "vocabulary.json"
OLDER = ".scratch"  # where an older version had what is on the way


def prepare(
    name: str,
    raw_dir: Path | str,
    data_dir: Path | str,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    calibration: float = 0.0,
    also_train: str = "none",
    leave_out: str = "",
    progress: Progress | None = None,
    say: Say | None = None,
    report: Report | None = None,
) -> Path:
    """The folder with the records of a data set, built if there is none for these inputs.

    Args:
      name: one of `m4.data.sets`, or any importable module ('mylab.data').
      raw_dir: root of the raw files; the data set has its own folder in it.
      data_dir: where built data sets live.
      seed: key of the split.
      options: passed to the data set module.
      calibration: share of the training patients that become a split (`m4.data.set_aside`).
      also_train: which splits train beside 'train' (`m4.data.held_in`).
      leave_out: 'site=North', whose people are tested (`m4.data.leave_out`), never 'site' alone.
      progress: told about every few hundred records.
      say: told how the files match, if something is built.
      report: told the manifest, if something was built.

    A folder built for the same is reused while no source has another size, time stamp or inode than
    when it was hashed (a small one is hashed at every start, all by `python -m m4.data verify`) and
    nothing came or went beside them; else all are looked for and hashed again. Raw files that are
    gone do not invalidate it; one with a damaged manifest is built again.

    Raises:
      DataError: missing or damaged files, one line each; an empty split; a patient in two splits.
      SaveError: `data_dir` cannot be written or is full, or the data set's folder is not ours.
    """
    raw_dir, options = Path(raw_dir), dict(options or {})
    module, home = data_sets.find(name), Path(data_dir) / name.rpartition(".")[2]
    homes.require_own(home)
    _sweep(Path(data_dir))
    own = identity_of(module, name, seed=seed, options=options, calibration=calibration)
    own |= _parts(also_train, leave_out)
    if ready := _ready(home, own, raw_dir):
        return ready
    if missing := module.missing_files(raw_dir, **options):
        if ready := _ready(home, own, raw_dir, beside=False):  # what is there is as it was
            return ready
        raise DataError(*_damage(home), *missing, f"{name}: {module.WHERE}")
    with blamed(home, raw_dir), _locked(home):
        if ready := _unchanged(home, own, raw_dir):  # built while we waited for the lock
            return ready
        with temporary.held(home) as place:
            temporary.adopt(place)
            cohort = _cohort(module, name, raw_dir, place, seed=seed, options=options)
            stamps = _stamps(raw_dir, cohort)
            built = _build(place, own, cohort, stamps, progress=progress, say=say, report=report)
        temporary.sweep(home, kept=False)
        return built


def _ready(home: Path, own: dict[str, Any], raw_dir: Path, *, beside: bool = True) -> Path | None:
    """As `_unchanged`; raises SaveError for a folder that cannot be read, DataError for a file."""
    try:
        return _unchanged(home, own, raw_dir, beside=beside)
    except OSError as error:
        raise _unreadable(error, raw_dir, home) or SaveError(
            f"{home}: cannot be read ({error.strerror}): built data are for their owner only, so"
            " give --config.data.dir a folder of your own"
        ) from error


def _parts(also_train: str, leave_out: str) -> dict[str, str | None]:
    """What of a data set's identity says who is in which split; null for the usual."""
    return {
        "also_train": None if also_train == "none" else also_train,
        "leave_out": named(leave_out) or None,
    }


def _cohort(module: Any, name: str, raw_dir: Path, scratch: Path, *, seed: int, options) -> Cohort:
    """What the module reads, which may write in `scratch`."""
    keeps = {"scratch": scratch} if getattr(module, "SCRATCH", False) else {}
    with foreign(name):
        return module.cohort(raw_dir, seed=seed, **keeps, **options)


@contextlib.contextmanager
def blamed(home: Path, raw_dir: Path) -> Iterator[None]:
    """What cannot be read of `raw_dir`, a disk that is full or not ours, short memory: as such."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if source := _unreadable(error, raw_dir, home):
            raise source from error
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            where = error.filename or home
            raise SaveError(f"{where}: {error.strerror} (building records in {home})") from error
        if short := shortage(error):
            raise short from error
        raise


def _unreadable(error: Exception, raw_dir: Path, home: Path) -> DataError | None:
    """What to say if it is a source file that cannot be read; Arrow names it in the text."""
    if isinstance(error, OSError) and error.errno not in (None, *SHORT):
        text = str(error.filename or error)
        found = re.search(re.escape(str(raw_dir)) + r"[^'\"]*", text)
        if found and str(home) not in text:
            return DataError(f"{found[0]}: cannot be read ({os.strerror(error.errno)})")
    return None


def identity_of(
    module: Any, name: str, *, seed: int, options: dict[str, Any], calibration: float
) -> dict[str, Any]:
    """What determines the records of a data set, but for its source files."""
    return {
        "format": manifests.FORMAT,
        "name": name,
        "version": module.VERSION,
        "options": json.loads(json.dumps(getattr(module, "resolved", dict)(**options))),
        "seed": data_sets.seed_of(module, seed),
        "declared": manifests.schema(module.spec(**options)),
        "calibration": calibration or None,
    }


def fingerprint(identity: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> str:
    """Name of the folder: a hash of what determines the records.

    Group columns do where one of them says who is left out.
    """
    sums = {file: {"bytes": s["bytes"], "sha256": s["sha256"]} for file, s in sources.items()}
    told = {key: value for key, value in identity.items() if value is not None}
    for key in {"declared", "options"} & {*told} if not told.get("leave_out") else ():
        told[key] = {k: v for k, v in told[key].items() if k != groups.FOLDER}
    text = json.dumps([told, sums], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _unchanged(
    home: Path, identity: dict[str, Any], raw_dir: Path, *, beside: bool = True
) -> Path | None:
    """A built folder of this identity of which no source file is known to have changed.

    Nor, unless `beside` is False, is a name in the folders that hold them: it may be one more.
    """
    for path in sorted(home.glob(f"*/{manifests.FILE}")):
        if path.parent.name.startswith("."):
            continue
        damaged = (DataError, FileNotFoundError, ValueError, AttributeError, LookupError, TypeError)
        with contextlib.suppress(*damaged):
            found = manifests.unchecked(path.parent)  # most are of other identities
            if any(found.get(key) != value for key, value in identity.items()):
                continue
            stamps = seal.load(path.parent / STAMPS)
            files = stamps.get("files", stamps)  # before folders were listed, these alone
            if beside and not _nothing_beside(raw_dir, files, stamps["folders"]):
                continue
            if all(
                _same(raw_dir / f, stamp, found["sources"].get(f)) for f, stamp in files.items()
            ):
                manifests.check_files(path.parent, found)
                return path.parent
    return None


def _damage(home: Path) -> Iterator[str]:
    """A line for each built folder that cannot be used."""
    for path in sorted(home.glob(f"[!.]*/{manifests.FILE}")):
        try:
            manifests.read(path.parent)
        except DataError as error:
            yield from error.args


def _stamps(raw_dir: Path, cohort: Cohort) -> Stamps:
    """What tells at the next start that nothing changed, see `_unchanged`."""
    files: dict[str, Any] = dict.fromkeys(cohort.absent)
    files |= {f: _stamp(raw_dir / f) for f in cohort.sources if (raw_dir / f).exists()}
    return {"files": files, "folders": _listings(raw_dir, files)}


def _nothing_beside(raw_dir: Path, files: Mapping[str, Any], then: Mapping[str, str]) -> bool:
    """Whether the folders of the sources, where they are still there, hold what they held."""
    now = _listings(raw_dir, files)
    return all(now.get(folder, digest) == digest for folder, digest in then.items())


def _listings(raw_dir: Path, stamps: Mapping[str, Any]) -> dict[str, str]:
    """Folder -> digest of its names: of those that hold a file, and of all above up to `raw_dir`.

    Also of the folders in these, but for `raw_dir`, where other data sets have theirs. The files
    themselves count as there, for they may go; hidden ones are of nobody's interest.
    """
    names: dict[PurePosixPath, set[str]] = {}
    for file in map(PurePosixPath, (name for name, stamp in stamps.items() if stamp)):
        if not file.is_absolute():
            for below, folder in itertools.pairwise((file, *file.parents)):
                names.setdefault(folder, set()).add(below.name)
    for folder in [*names]:
        for name in _names(raw_dir / folder, folders=True) if folder.name else ():
            names.setdefault(folder / name, set())
    found = {}
    for folder, known in names.items():
        if (raw_dir / folder).is_dir():
            text = json.dumps(sorted(known | {*_names(raw_dir / folder)}))
            digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            found[folder.as_posix()] = digest
    return found


def _names(folder: Path, *, folders: bool = False) -> list[str]:
    """What lies in a folder, or which folders; nothing of one that cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_dir() or not folders)
        ]
    return []


def _write_stamps(folder: Path, stamps: Stamps) -> None:
    atomic.write(folder / STAMPS, json.dumps(stamps, indent=1) + "\n")


def _stamp(path: Path) -> list[int]:
    """What changes with a file's content, but for tricks: the time of change cannot be set."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _same(path: Path, stamp: list[int] | None, source: Mapping[str, Any] | None) -> bool:
    """Whether a source file is as it was when it was hashed. A small one is hashed again.

    Without a stamp it was not there.
    """
    if not path.exists():
        return True
    if stamp is None:
        return False
    if source is None or path.stat().st_size > SMALL:
        return _stamp(path) == stamp
    return path.stat().st_size == source["bytes"] and sha256(path) == source["sha256"]


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Makes a data set's folder and holds its lock."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SaveError(f"{home}: cannot be made ({error.strerror}); see data.dir") from error
    homes.require_own(home)
    with homes.locked(home, "build records"):
        yield


def _sweep(data_dir: Path) -> None:
    """Removes what dead builds of any data set left: it is patients' events."""
    with contextlib.suppress(OSError):
        for lock in data_dir.glob(f"*/{homes.LOCK}"):
            with contextlib.suppress(OSError):
                if homes.own(lock.parent):
                    for prefix in (temporary.PARTIAL, OLDER):
                        temporary.sweep(lock.parent, prefix)


def _build(
    place: Path,
    identity: dict,
    cohort: Cohort,
    stamps: Stamps,
    *,
    progress: Progress | None,
    say: Say | None,
    report: Report | None,
) -> Path:
    """The built folder, beside `place`, which holds it until it is complete."""
    final = place.with_name(fingerprint(identity, cohort.sources))
    if _sound(final, identity):
        _write_stamps(final, stamps)  # same bytes, new time stamps
        return final
    if left := identity.get("leave_out"):
        cohort = left_out(cohort, left)
    cohort = hold_in(cohort, identity.get("also_train") or "none")
    if share := identity["calibration"]:
        cohort = set_aside(cohort, share, identity["seed"])
    new = place / "data"
    new.mkdir(mode=0o700)
    also = identity.get("also_train") or "none"
    manifest = write(new, cohort, also_train=also, progress=progress, say=say)
    manifests.write(new, {**identity, "fingerprint": final.name, **manifest})
    _write_stamps(new, stamps)
    _name(new, final, identity)
    if report:
        report(manifest)
    return final


def _sound(folder: Path, identity: dict) -> bool:
    """Whether a folder of this fingerprint is whole and of this identity: groups may differ."""
    with contextlib.suppress(DataError):
        found = manifests.read(folder)
        return all(found.get(key) == value for key, value in identity.items())
    return False


def _name(new: Path, final: Path, identity: dict) -> None:
    """Gives a complete folder its name; what has it stays if it is as good: another was faster."""
    for number in itertools.count(1):
        if _sound(final, identity):
            return
        with contextlib.suppress(FileNotFoundError):
            final.rename(new.with_name(f"damaged-{number}"))
        try:
            new.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or number == TRIES:
                raise


def joining(cohort: Cohort) -> list[str]:
    """How the files of a cohort match. Raises DataError if they don't."""
    with foreign("joining"):
        return cohort.joining()


def write(
    folder: Path,
    cohort: Cohort,
    *,
    also_train: str = "none",
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Write a cohort's records and licence into `folder`; returns the manifest's measured part."""
    (folder / "LICENCE.txt").write_text(
        f"{cohort.licence}\n\nThese records are derived from patient data and fall under the terms "
        "above.\nKeep them where the source files may be kept, and do not share them otherwise.\n"
    )
    fitter = manifests.Fitter(cohort.spec)
    summaries = {split: manifests.Summary(cohort.spec) for split in cohort.splits}
    missing = {"train", *HELD_OUT[also_train]} - {*cohort.splits}
    if missing:
        raise DataError(f"splits: without {', '.join(sorted(missing))}")

    joined = joining(cohort)
    if say and joined:
        say(joined)
    features: dict[str, shift.Features] = {}

    def seen(split: str, record: Example) -> None:
        summaries[split].add(record)
        if split == "train":
            fitter.add(record)
        elif summaries["train"].patients:
            if split not in features:
                features[split] = shift.Features(cohort.spec, fitter.normalisers())
            features[split].add(record)

    cuts = write_records(folder, cohort, seen, progress=progress)
    if cohort.vocabularies:
        text = json.dumps(cohort.vocabularies, ensure_ascii=False, indent=1)
        (folder / VOCABULARY).write_text(text + "\n", encoding="utf-8")
    if {*summaries["train"].result()["patterns"]} == {"0"}:
        raise DataError("split train: no record has anything to predict from")
    supervised = [task.name for task in cohort.spec.tasks if task.kind != "cluster"]
    if supervised and not any(map(summaries["train"].knows, supervised)):
        raise DataError(f"split train: not one label of {', '.join(supervised)} is known")
    for first, second in itertools.combinations(summaries, 2):
        if both := len(summaries[first].patients & summaries[second].patients):
            raise DataError(f"splits: {both} patients are in both {first} and {second}")
    return {
        "licence": cohort.licence,
        "notes": cohort.notes,
        "sources": cohort.sources,
        "schema": manifests.schema(fitter.spec()),
        "flow": flow(cohort, cuts),
        "splits": {split: summary.result() for split, summary in summaries.items()},
        "normalisers": fitter.normalisers(),
        **({"fitted": cohort.fitted} if cohort.fitted else {}),
        "features": {split: found.result() for split, found in features.items()},
        "joining": joined,
        "warnings": cohort.warnings,
    }


def write_records(
    folder: Path,
    cohort: Cohort,
    seen: Callable[[str, Example], None],
    *,
    progress: Progress | None = None,
) -> Counter[str]:
    """Writes the records, keys and groups of every split; returns how many payloads were cut.

    `seen` is called with the split and every record on its way.
    """
    cuts: Counter[str] = Counter()
    keys: dict[str, list[index.Key]] = {split: [] for split in cohort.splits}
    belongs: dict[str, list[tuple[str, ...]]] = {split: [] for split in cohort.splits}

    def encoded(split: str) -> Iterator[Example]:
        number = 0
        for number, example in enumerate(_examples(cohort, split), start=1):
            where = f"split {split}, record {number}"
            record = records.encode(cohort.spec, example, where=where, flow=cuts)
            seen(split, record)
            belongs[split].append(groups.categories(cohort.spec, example, where))
            if "key" in example:
                keys[split].append(example["key"])
            if progress and number % REPORT_EVERY == 0:
                progress(split, number)
            yield record
        if number == 0:
            raise DataError(f"split {split} has no records")
        if progress:
            progress(split, number)

    starts = {split: lambda split=split: encoded(split) for split in cohort.splits}
    records.write(folder / "records", cohort.spec, starts, cohort.notes)
    for split, found in keys.items():
        if found:
            index.write(folder, split, found)
        groups.write(folder, split, cohort.spec, belongs[split])
    return cuts


def flow(cohort: Cohort, cuts: Counter[str]) -> list[list[Any]]:
    """[step, count] of everything that was kept, dropped or cut."""
    return [[step, int(count)] for step, count in [*cohort.flow, *sorted(cuts.items())]]


def _examples(cohort: Cohort, split: str) -> Iterator[Any]:
    """The examples of a split; what its module raises is told by the record, not by its text."""
    examples: Iterator[Any] | None = None
    for number in itertools.count(1):
        with foreign(f"split {split}, record {number}"):
            examples = examples or iter(cohort.splits[split]())
            try:
                example = next(examples)
            except StopIteration:
                return
        yield example


@contextlib.contextmanager
def foreign(where: str) -> Iterator[None]:
    """Code of a data set module: its failure is a DataError that quotes nothing of the data."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (*CANNOT_WRITE, *CANNOT_READ):
            raise
        if short := shortage(error):
            raise short from error
        raise DataError(f"{where}: {place(error)}; --debug prints more") from error
