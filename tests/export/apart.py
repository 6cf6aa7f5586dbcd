"""A bundle in a process that has JAX, what JAX needs, and the standard library, no more."""

import subprocess
import sys

ONLY = """
import importlib.machinery, runpy, sys
known = {"jax", "jaxlib", "jax_plugins", "numpy", "scipy", "ml_dtypes", "opt_einsum", "__main__"}
class Only(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        own = name.partition(".")[0]
        if own in known | sys.stdlib_module_names or own.startswith("_sysconfigdata"):
            return super().find_spec(name, path, target)
built_in = importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter
sys.meta_path = [*built_in, Only]
try:
    import m4, flax
except ImportError:  # as it should be
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(file, *args):
    """The finished process of `python FILE ARGS`."""
    command = [sys.executable, "-I", "-c", ONLY, str(file), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)
