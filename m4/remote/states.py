"""Where the states of a run are: in its work directory, here or in a bucket."""

from pathlib import Path

from etils import epath

from m4.remote import mirror, places


def of(folder: Path) -> epath.Path | Path:
    """The folder of a run's checkpoints, by the folder that is or stands for its work directory.

    Raises ConfigError where the package that reads buckets is missing.
    """
    if (url := places.url_of(folder)) is None:
        return folder / "checkpoints"
    mirror.file_system(url)  # before `epath` asks for one
    return epath.Path(url) / "checkpoints"
