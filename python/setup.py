# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Builds the wheel. JITMEM_PREFIX, where jitmem is installed, has the library and jitmem-executor put into
it, and the wheel is for this platform then; without it the wheel is for any, and takes the system's."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PREFIX = os.environ.get("JITMEM_PREFIX")


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        for name in ("lib/libjitmem.so", "bin/jitmem-executor") if PREFIX else ():
            target = Path(self.build_lib, "jitmem", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(PREFIX, name), target)


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> "tuple[str, str, str]":
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return PREFIX is not None


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel}, distclass=PlatformDistribution)
