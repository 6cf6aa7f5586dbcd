"""Timings that no user runs: steps against their rivals, the loader, building, buckets.

`python -m tests.timing NAME --help`, in the root of a checkout.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Of a child process that finds m4 and these scripts, wherever it is started."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
