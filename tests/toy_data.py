"""A data set module outside the tree, for tests: see `m4.data`."""

from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION, LICENCE, WHERE = "1", "Apache-2.0", "generated"


def spec(*, rows=64, sizes=(), needs_file=""):
    return DataSpec(
        (ModalitySpec("static", "table", (4,)),),
        (TaskSpec("death", "binary"), TaskSpec("los", "regression")),
    )


def missing_files(raw_dir, *, rows=64, sizes=(), needs_file=""):
    missing = needs_file and not (raw_dir / needs_file).exists()
    return [f"{raw_dir / needs_file} is missing"] if missing else []
