# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What JITMEM_LIBRARY names is the library of this package, or the import says what it is."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import jitmem

MAJOR, MINOR, PATCH = map(int, jitmem.__version__.split("."))
REMEDY = f": install jitmem {MAJOR}.{MINOR}, or set JITMEM_LIBRARY to its libjitmem.so"


def with_version(major, minor, patch):
    """A library in C that has a version and nothing else."""
    return f"unsigned jitmem_version(void) {{ return {major << 16 | minor << 8 | patch}; }}"


class LibraryTest(unittest.TestCase):
    def assertNotLoaded(self, library, why):
        command = [sys.executable, "-B", "-c", "import jitmem"]
        ended = subprocess.run(command, env={**os.environ, "JITMEM_LIBRARY": library}, capture_output=True, text=True)
        self.assertEqual(ended.returncode, 1, ended.stderr)
        last = ended.stderr.splitlines()[-1]
        self.assertRegex(last, "^ImportError: load jitmem: ")
        self.assertIn(why, last)
        self.assertTrue(last.endswith(REMEDY), last)

    def compiled(self, source):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        library = str(Path(folder.name, "libother.so"))
        subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", library], input=source, text=True, check=True)
        return library

    def test_what_is_not_there_is_named(self):
        self.assertNotLoaded("/nowhere/libjitmem.so", "/nowhere/libjitmem.so: ")

    def test_another_library_is_named(self):
        self.assertNotLoaded("libc.so.6", "libc.so.6: no libjitmem.so")

    def test_an_older_one_lacks_functions(self):
        library = self.compiled(with_version(MAJOR, MINOR, PATCH))
        self.assertNotLoaded(library, f"{library}: no libjitmem.so, or one that is older")

    def test_another_abi_is_named(self):
        for version in (MAJOR, MINOR + 1, 7), (MAJOR + 1, MINOR, PATCH):
            library = self.compiled(with_version(*version))
            self.assertNotLoaded(library, f"{library}: the library is jitmem {'.'.join(map(str, version))}")


if __name__ == "__main__":
    unittest.main()
