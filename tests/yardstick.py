"""Time as a multiple of importing JAX, since seconds depend on who else is at the machine."""

import subprocess
import sys
from collections.abc import Callable

TRIES = 3


def in_imports(seconds: Callable[[], float]) -> float:
    """Process seconds of something over those of a Python that imports JAX: the least of a few."""
    return min(seconds() / _import() for _ in range(TRIES))


def _import() -> float:
    code = "import time, jax; print(time.process_time())"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
