"""Builds the operator's kernels ahead of time: ``pip install ./models/ops``, or beside the sources with

    python models/ops/setup.py build_ext --inplace

Without it they are built at first use. The compiling is ``compiling.py``'s: pip runs this file where PyTorch is not to
be seen, so that runs in an interpreter of its own, which sees what the user has installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
PACKAGE = "t2v_rvos_kernels"
PROJECT = HERE.parents[1] / "pyproject.toml"  # pip builds in place, so it is there


class BuildKernels(build_ext):
    """Hands over to ``compiling.py``; the libraries have no Python part."""

    def run(self) -> None:
        """Build into this folder (``--inplace``, editable) or into the package of the wheel."""
        in_place = self.inplace or self.editable_mode
        self.folder = HERE if in_place else Path(self.build_lib, PACKAGE).resolve()
        command = [sys.executable, "-I", str(HERE / "compiling.py"), str(self.folder)]
        status = subprocess.run(command, cwd=HERE, check=False).returncode
        if status:
            sys.exit(status)

    def get_outputs(self) -> list[str]:
        """The libraries that were built."""
        return [str(path) for path in sorted(self.folder.glob("msda_*.so"))]


if __name__ == "__main__":
    os.chdir(HERE)
    setup(
        name="t2v-rvos-kernels",
        version=tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"],
        description="Compiled kernels of multi-scale deformable attention for t2v-rvos",
        license="Apache-2.0",
        python_requires=">=3.11",
        packages=[],
        ext_modules=[Extension(f"{PACKAGE}.msda", [])],
        cmdclass={"build_ext": BuildKernels},
    )
