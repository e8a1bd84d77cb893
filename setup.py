"""What pyproject.toml cannot say: a wheel carries two folders that lie beside the package in a checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFolders(build_py):
    """Copies kernels/ and data/ into the package; an editable installation finds them where they are."""

    def run(self):
        """Build the package, then put the folders inside."""
        super().run()
        for name in () if self.editable_mode else ("kernels", "data"):
            inside = Path(self.build_lib) / "moe_lab" / name
            shutil.copytree(name, inside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithFolders})
