#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""abi.py finds what breaks programs, and lets pass what does not."""

import contextlib
import io
import pathlib
import subprocess
import tempfile
import unittest

import abi

HEADER = """#include <stddef.h>
#include <stdint.h>

typedef enum jitmem_kind { JITMEM_ONE = 1, JITMEM_TWO = 2 } jitmem_kind;

typedef struct jitmem_options {
  /// sizeof(jitmem_options)
  size_t struct_size;
  uint32_t quota;
} jitmem_options;

typedef struct jitmem_segment {
  uint64_t size;
  uint32_t protection;
} jitmem_segment;

uint32_t jitmem_create(const struct jitmem_options *options);

uint32_t jitmem_allocate(const struct jitmem_segment *segments,
                         size_t count);
"""


class Abi(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.old = self.build("old", HEADER)

    def build(self, name, header):
        """An installed library with this header."""
        prefix = self.folder / name
        for folder in ("include", "lib"):
            (prefix / folder).mkdir(parents=True)
        (prefix / "include" / "jitmem.h").write_text(header)
        bodies = "".join(f"{text} {{ return 0; }}\n" for text in abi.declared(header).values())
        (prefix / "lib.c").write_text(f'#include "include/jitmem.h"\n{bodies}')
        (prefix / "lib.map").write_text("JITMEM_0.1 { global: jitmem_*; local: *; };")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "lib.c", "-o", "lib/libjitmem.so", "-Wl,-soname,libjitmem.so.0.1,--version-script,lib.map"],
            cwd=prefix,
            check=True,
        )
        return prefix

    def compared(self, before, after):
        """Whether a header with this change is compatible, and what is said of it."""
        self.assertIn(before, HEADER)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = abi.compare(self.old, self.build("new", HEADER.replace(before, after)))
        return status == 0, said.getvalue()

    def test_nothing_changed(self):
        compatible, said = self.compared("", "")
        self.assertTrue(compatible, said)

    def test_removed_function(self):
        compatible, said = self.compared("uint32_t jitmem_create(const struct jitmem_options *options);\n", "")
        self.assertFalse(compatible, said)
        self.assertRegex(said, r"Removed function|\[D\].*jitmem_create")

    def test_changed_parameter(self):
        compatible, said = self.compared("size_t count", "uint16_t count")
        self.assertFalse(compatible, said)
        self.assertIn("jitmem_allocate", said)

    def test_changed_field(self):
        compatible, said = self.compared("uint32_t protection", "uint64_t protection")
        self.assertFalse(compatible, said)
        self.assertIn("jitmem_segment", said)

    def test_field_added_to_what_stands_in_arrays(self):
        compatible, said = self.compared("uint32_t protection;", "uint32_t protection;\n  uint64_t more;")
        self.assertFalse(compatible, said)
        self.assertIn("jitmem_segment", said)

    def test_field_inserted_into_what_may_grow(self):
        compatible, said = self.compared("uint32_t quota;", "uint64_t more;\n  uint32_t quota;")
        self.assertFalse(compatible, said)
        self.assertIn("jitmem_options", said)

    def test_changed_enumerator(self):
        compatible, said = self.compared("JITMEM_TWO = 2", "JITMEM_TWO = 3")
        self.assertFalse(compatible, said)
        self.assertIn("JITMEM_TWO", said)

    def test_field_added_to_what_may_grow(self):
        compatible, said = self.compared("uint32_t quota;", "uint32_t quota;\n  uint64_t more;")
        self.assertTrue(compatible, said)

    def test_added_enumerator(self):
        compatible, said = self.compared("JITMEM_TWO = 2", "JITMEM_TWO = 2, JITMEM_THREE = 3")
        self.assertTrue(compatible, said)

    def test_added_enumeration(self):
        compatible, said = self.compared("typedef enum", "typedef enum jitmem_more { JITMEM_A } jitmem_more;\ntypedef enum")
        self.assertTrue(compatible, said)
        self.assertIn("jitmem_more", said)

    def test_type_that_a_new_function_takes(self):
        extra = "typedef struct jitmem_extra { uint64_t size; } jitmem_extra;\n"
        self.old = self.build("unused", HEADER + extra)
        function = "uint32_t jitmem_extend(const struct jitmem_extra *extra);\n"
        new = self.build("used", HEADER + extra + function)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.assertEqual(0, abi.compare(self.old, new), said.getvalue())
        self.assertIn("jitmem_extend", said.getvalue())
        with contextlib.redirect_stdout(said):
            self.assertEqual(1, abi.compare(self.old, self.build("gone", HEADER)), said.getvalue())

    def test_changed_soname(self):
        new = self.build("new", HEADER)
        library = new / "lib" / "libjitmem.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "lib.c", "-o", library, "-Wl,-soname,libjitmem.so.0.2,--version-script,lib.map"],
            cwd=new,
            check=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(1, abi.compare(self.old, new))

    def test_added_function_is_named(self):
        compatible, said = self.compared("uint32_t jitmem_create", "uint32_t jitmem_more(void);\nuint32_t jitmem_create")
        self.assertTrue(compatible, said)
        self.assertIn("jitmem_more", said)

    def test_function_without_declaration(self):
        new = self.build("new", HEADER)
        header = new / "include" / "jitmem.h"
        header.write_text(HEADER.replace("uint32_t jitmem_create(const struct jitmem_options *options);\n", ""))
        with self.assertRaisesRegex(SystemExit, "differ in jitmem_create"):
            abi.compare(self.old, new)


if __name__ == "__main__":
    unittest.main()
