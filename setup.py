"""Puts the configurations and launchers, which stand beside the package, into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "launch")


class WithShipped(build_py):
    """Copies FOLDERS to m4/shipped; a clone that is linked in has them already."""

    def run(self) -> None:
        """Builds as always, then copies."""
        super().run()
        for name in () if self.editable_mode else FOLDERS:
            place = Path(self.build_lib, "m4", "shipped", name)
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(name, place, ignore=ignored, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithShipped})
