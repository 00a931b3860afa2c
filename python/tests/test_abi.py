# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What _abi.py says is what a C compiler makes of the installed header."""

import ctypes
import dataclasses
import os
import re
import subprocess
import unittest
from pathlib import Path

import jitmem
from jitmem import _abi

HEADER = Path(os.environ["JITMEM_TEST_INCLUDE"], "jitmem.h")
# For ctypes, size_t is the integer of its size.
OF_INTEGERS = {
    ctypes.c_int32: "int32_t ",
    ctypes.c_uint32: "uint32_t ",
    ctypes.c_uint64: ("uint64_t ", "size_t "),
}


def assertions():
    for name, struct in _abi.STRUCTS.items():
        yield f"sizeof({name}) == {ctypes.sizeof(struct)}"
        for field, *_ in struct._fields_:
            place = getattr(struct, field)
            yield f"offsetof({name}, {field}) == {place.offset}"
            yield f"sizeof((({name} *)0)->{field}) == {place.size}"
    for prefix, enum in _abi.ENUMS.items():
        for member in enum:
            yield f"{prefix}{member.name} == {int(member)}"


def compile_c(source):
    flags = ["-std=c11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}", "-xc", "-"]
    return subprocess.run(["cc", *flags], input=source, capture_output=True, text=True)


def checks(expressions):
    lines = [f'_Static_assert({expression}, "{expression}");\n' for expression in expressions]
    return "#include <jitmem.h>\n#include <stddef.h>\n" + "".join(lines)


class AbiTest(unittest.TestCase):
    def test_sizes_offsets_and_numbers_are_the_headers(self):
        compiled = compile_c(checks(assertions()))
        self.assertEqual(compiled.returncode, 0, compiled.stderr)

    def test_a_wrong_offset_would_be_seen(self):
        self.assertNotEqual(compile_c(checks(["offsetof(jitmem_segment, alignment) == 8"])).returncode, 0)

    def test_no_number_of_an_enumeration_is_missing(self):
        text = HEADER.read_text()
        for prefix, enum in _abi.ENUMS.items():
            first = prefix + next(iter(enum)).name
            if enum is _abi.WindowSize:
                continue  # constants by themselves
            (body,) = (b for b in re.findall(r"^JITMEM_ENUM\(\w+\) \{(.*?)^\};", text, re.DOTALL | re.MULTILINE) if first in b)
            numbers = set(re.findall(r"^  (\w+) = \d+,", body, re.MULTILINE))
            self.assertEqual(numbers - {"JITMEM_OK"}, {prefix + member.name for member in enum}, enum)

    def test_no_field_of_a_struct_is_missing(self):
        text = HEADER.read_text()
        for name, struct in _abi.STRUCTS.items():
            body = re.search(rf"typedef struct {name} {{(.*?)\n}} {name};", text, re.DOTALL).group(1)
            fields = re.findall(r"^  [^/].*?(\w+)(?:\[\d+\])?;$", body, re.MULTILINE)
            self.assertEqual(fields, [field for field, *_ in struct._fields_], name)

    def test_functions_take_what_the_header_says(self):
        text = HEADER.read_text()
        functions = {name: [*arguments, None] for name, arguments in _abi.FALLIBLE.items()}
        functions.update({name: arguments for name, (_, arguments) in _abi.INFALLIBLE.items()})
        for name, arguments in functions.items():
            declared = re.search(rf"^[a-z][\w *]*\b{name}\((.*?)\);", text, re.DOTALL | re.MULTILINE).group(1)
            parameters = [] if declared == "void" else [p.strip() for p in declared.split(",")]
            self.assertEqual(len(parameters), len(arguments), name)
            for parameter, argument in zip(parameters, arguments):
                if argument in OF_INTEGERS:
                    self.assertTrue(parameter.startswith(OF_INTEGERS[argument]), f"{name}: {parameter}")
                else:
                    self.assertRegex(parameter, r"\*|_fn ", name)

    def test_no_field_takes_a_number_that_would_be_cut(self):
        for struct in _abi.STRUCTS.values():
            for field, kind in struct._fields_:
                size = ctypes.sizeof(kind)
                if kind in OF_INTEGERS:
                    with self.assertRaises(OverflowError):
                        struct(**{field: 1 << 8 * size})
                    with self.assertRaises(OverflowError):
                        struct(**{field: -1})
                    most = (1 << 8 * size) - 1
                    self.assertEqual(getattr(struct(**{field: most}), field), most)

    def test_stats_have_the_structs_fields(self):
        fields = [field.name for field in dataclasses.fields(jitmem.Stats)]
        self.assertEqual(["struct_size", *fields], [name for name, *_ in _abi.Stats._fields_])

    def test_the_package_has_the_librarys_version(self):
        self.assertEqual(jitmem.version(), jitmem.__version__)


if __name__ == "__main__":
    unittest.main()
