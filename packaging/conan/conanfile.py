# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
import os

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, get

required_conan_version = ">=2.0"


class JitmemConan(ConanFile):
    name = "jitmem"
    description = "Memory manager for JIT-linked code: in this process, in another process, or on another machine"
    license = "Apache-2.0 WITH LLVM-exception"
    topics = ("jit", "llvm", "jitlink", "memory")
    # Both libraries are there, as targets of their own.
    package_type = "shared-library"
    settings = "os", "arch", "compiler", "build_type"

    def configure(self):
        # The libraries have a C interface.
        self.settings.rm_safe("compiler.cppstd")
        self.settings.rm_safe("compiler.libcxx")

    def validate(self):
        if self.settings.os != "Linux" or self.settings.arch not in ("x86_64", "armv8"):
            raise ConanInvalidConfiguration(f"{self.ref} is for Linux on x86_64 and armv8")

    # Rust is the one on PATH, or of rustup; jitmem's CMake says which version it needs.
    def build_requirements(self):
        self.tool_requires("cmake/[>=3.22]")

    def layout(self):
        cmake_layout(self, src_folder="src")

    def source(self):
        get(self, **self.conan_data["sources"][self.version], strip_root=True)

    def generate(self):
        CMakeToolchain(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.libs = ["jitmem"]
        self.cpp_info.set_property("pkg_config_name", "jitmem")
        # find_package has the package that jitmem brings, with all its targets.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("lib", "cmake", "jitmem")]
