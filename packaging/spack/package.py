# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
from spack_repo.builtin.build_systems.cmake import CMakePackage

from spack.package import *


class Jitmem(CMakePackage):
    """Memory manager for JIT-linked code: in this process, in another process, or on another machine."""

    url = "@URL@"

    license("Apache-2.0 WITH LLVM-exception")

    version("@VERSION@", sha256="@SHA256@")

    depends_on("c", type="build")
    depends_on("cmake@3.22:", type="build")
    depends_on("rust@1.85:", type="build")

    requires("platform=linux", msg="jitmem is for Linux")
    requires("target=x86_64:", "target=aarch64:", policy="one_of", msg="jitmem is for x86-64 and AArch64")

    def cmake_args(self):
        rust = self.spec["rust"].prefix.bin
        return [self.define("JITMEM_CARGO", rust.cargo), self.define("JITMEM_RUSTC", rust.rustc)]
