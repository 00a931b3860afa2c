#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Installs a package of Spack's without Spack: what its directives say is checked, and its CMake arguments are used.

usage: spack_package.py PACKAGE TARBALL WORK PREFIX, with the Rust on PATH or of rustup
"""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import types

DIRECTIVES = ("license", "version", "depends_on", "requires")
said = {name: [] for name in DIRECTIVES}


class Path(str):
    def __getattr__(self, name):
        return Path(f"{self}/{name}")


class CMakePackage:
    def define(self, name, value):
        return f"-D{name}={value}"


def load(path):
    """The class that the file defines, with modules in place of those of Spack that it imports."""
    package = types.ModuleType("spack.package")
    for name in DIRECTIVES:
        setattr(package, name, lambda *words, name=name, **more: said[name].append((words, more)))
    cmake = types.ModuleType("spack_repo.builtin.build_systems.cmake")
    cmake.CMakePackage = CMakePackage
    for name in ("spack", "spack_repo", "spack_repo.builtin", "spack_repo.builtin.build_systems"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[package.__name__], sys.modules[cmake.__name__] = package, cmake
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return scope["Jitmem"]


def main(package, tarball, work, prefix):
    recipe = load(package)()
    assert recipe.url.endswith(tarball.name), recipe.url
    [((version,), digest)] = said["version"]
    assert f"-{version}.tar" in tarball.name, version
    assert digest["sha256"] == hashlib.sha256(tarball.read_bytes()).hexdigest(), digest
    assert {words[0].partition("@")[0] for words, _ in said["depends_on"]} >= {"c", "cmake", "rust"}, said
    cargo = pathlib.Path(subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip())
    rust = types.SimpleNamespace(prefix=Path(cargo))
    recipe.spec = {"rust": rust}
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    subprocess.run(["tar", "-C", work, "--strip-components=1", "-xf", tarball], check=True)
    build = work / "spack-build"
    subprocess.run(["cmake", "-S", work, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}", *recipe.cmake_args()], check=True)
    subprocess.run(["cmake", "--build", build, "--target", "install"], check=True)


if __name__ == "__main__":
    main(*(pathlib.Path(word).resolve() for word in sys.argv[1:5]))
