#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""LLVM's own programs run on jitmem by LD_PRELOAD, unchanged, and say so when they end.

usage: programs.py PYTHON BUILD...    with a Python that has llvmlite, and one folder for each LLVM, in which preload/ was
                                      built: build/preload-22
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

PRELOADS = {}
HELLO = """
declare i32 @puts(i8*)
@text = private constant [6 x i8] c"hello\\00"
define i32 @main() { %r = call i32 @puts(i8* getelementptr ([6 x i8], [6 x i8]* @text, i64 0, i64 0))
  ret i32 0 }
"""
MLIR = "module { llvm.func @main() -> i32 { %0 = llvm.mlir.constant(42 : i32) : i32  llvm.return %0 : i32 } }"
SESSION = """extern "C" int printf(const char *, ...);
int answer = 6 * 7;
int first = printf("%d\\n", answer);
try { throw 5; } catch (int e) { printf("caught %d\\n", e); }
%quit
"""


class Programs(unittest.TestCase):
    def run_with(self, preload, *command, text=None, **environment):
        """What a program prints, its complaints, and the figures of its report."""
        with tempfile.TemporaryDirectory() as folder:
            report = pathlib.Path(folder, "report")
            run = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                env={**os.environ, "LD_PRELOAD": PRELOADS[preload], "JITMEM_PRELOAD_REPORT": str(report), **environment},
            )
            self.assertEqual(0, run.returncode, run.stderr)
            lines = report.read_text().splitlines()
        self.assertEqual(1, len(lines), lines)
        found = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', lines[0]))
        return run.stdout, run.stderr, {name: int(value) if value.isdigit() else value for name, value in found.items()}

    def on_jitmem(self, report):
        self.assertGreater(report["allocations"], 0, report)
        self.assertEqual(report["allocations"], report["deallocations"], report)
        self.assertEqual((1, 0, '""'), (report["layers"], report["failures"], report["note"]), report)

    def not_on_jitmem(self, report):
        self.assertEqual((0, 0), (report["layers"], report["allocations"]), report)

    def lli(self, version, kind, preload=None, **environment):
        pointers = ["--opaque-pointers=0"] if version == 14 else []
        return self.run_with(preload or version, tool(version, "lli"), *kind, *pointers, text=HELLO, **environment)

    def test_lli(self):
        for version in PRELOADS:
            for kind in ["--jit-kind=orc"], ["--jit-kind=orc-lazy"], []:
                if version < 16 and not kind:
                    continue  # its default is MCJIT, below
                with self.subTest(version=version, kind=kind):
                    output, complaint, report = self.lli(version, kind)
                    self.assertEqual(("hello\n", ""), (output, complaint))
                    self.on_jitmem(report)

    def test_mcjit_is_left_alone(self):
        output, complaint, report = self.lli(22, ["--jit-kind=mcjit"])
        self.assertEqual(("hello\n", ""), (output, complaint))
        self.not_on_jitmem(report)

    def test_clang_repl(self):
        output, complaint, report = self.run_with(22, tool(22, "clang-repl"), text=SESSION)
        self.assertEqual(("42\ncaught 5", ""), (output.replace("clang-repl> ", "").strip(), complaint))
        self.on_jitmem(report)

    def test_mlir_runner_whose_layer_is_RuntimeDyld(self):
        output, complaint, report = self.run_with(22, tool(22, "mlir-runner"), "-e", "main", "-entry-point-result=i32", text=MLIR)
        self.assertEqual(("42\n", ""), (output, complaint))
        self.on_jitmem(report)

    def build_own_memory(self, version, folder):
        source, program = pathlib.Path(__file__).with_name("own_memory.cpp"), folder + "/own_memory"
        flags = subprocess.run(
            [tool(version, "llvm-config"), "--cxxflags", "--ldflags", "--libs", "--link-shared"],
            check=True, capture_output=True, text=True).stdout.split()
        # As by default, with copies of LLVM's data that it names.
        subprocess.run(["c++", source, "-O0", "-o", program, *flags, "-fPIE"], check=True)
        return program

    def test_memory_of_the_hosts_own_is_left_alone(self):
        for version in min(PRELOADS), max(PRELOADS):
            with self.subTest(version=version), tempfile.TemporaryDirectory() as folder:
                program = self.build_own_memory(version, folder)
                output, complaint, report = self.run_with(version, program, "plain")
                self.assertEqual(("42, RuntimeDyld, 0\n", ""), (output, complaint))
                self.on_jitmem(report)
                for kind in "mapper", "derived":
                    output, complaint, report = self.run_with(version, program, kind)
                    self.assertRegex(output, "^42, RuntimeDyld, [1-9]")
                    self.assertEqual("", complaint)
                    self.not_on_jitmem(report)

    def test_a_program_with_copies_of_llvms_data(self):
        with tempfile.TemporaryDirectory() as folder:
            program = self.build_own_memory(22, folder)
            relocations = subprocess.run(["readelf", "-rW", program], check=True, capture_output=True, text=True).stdout
            self.assertRegex(relocations, "_COPY .*ObjectLinkingLayer2ID")
            output, complaint, report = self.run_with(22, program, "jitlink")
            self.assertEqual(("42, JITLink, 0\n", ""), (output, complaint))
            self.on_jitmem(report)
            # Its layer goes on with LLVM's manager.
            output, complaint, report = self.run_with(22, program, "early")
            self.assertEqual(("42, JITLink, 0\n", ""), (output, complaint))
            self.assertEqual(0, report["allocations"])

    def test_switched_off(self):
        output, complaint, report = self.lli(22, [], JITMEM_PRELOAD="off")
        self.assertEqual(("hello\n", ""), (output, complaint))
        self.not_on_jitmem(report)
        self.assertEqual('"JITMEM_PRELOAD=off"', report["note"])

    def test_another_llvm_is_named_and_left_alone(self):
        output, complaint, report = self.lli(19, [], preload=22)
        self.assertEqual("hello\n", output)
        self.assertRegex(complaint, r"^jitmem: libjitmem-llvm-22.so steps aside in lli: it uses the LLVM in \S+libLLVM.so.19.1, ")
        self.not_on_jitmem(report)

    def test_llvm_in_the_program_itself_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            # Stands for a program with LLVM in it: what is looked for is LLVM's message.
            subprocess.run(["cc", "-xc", "-", "-o", folder + "/static"], check=True, text=True,
                           input='#include <stdio.h>\nint main(int c, char **v) { if (c > 1) puts("LLVM ERROR: "); return 0; }')
            _, complaint, report = self.run_with(22, folder + "/static")
        self.assertEqual("", complaint)
        self.not_on_jitmem(report)

    def test_llvmlite_whose_llvm_is_inside_is_named_and_left_alone(self):
        example = pathlib.Path(__file__).parents[2] / "examples/python/llvmlite_engines.py"
        output, complaint, report = self.run_with(22, PYTHON, str(example))
        self.assertEqual(("answers by MCJIT and LLJIT of llvmlite: [42, 42]\n", ""), (output, complaint))
        self.assertRegex(report["llvm"], r"/libllvmlite\.so,$")
        self.not_on_jitmem(report)

    def test_program_without_llvm(self):
        output, complaint, report = self.run_with(22, "/bin/echo", "as ever")
        self.assertEqual(("as ever\n", "", "none"), (output, complaint, report["llvm"]))
        self.not_on_jitmem(report)


def tool(version, name):
    return f"/usr/lib/llvm-{version}/bin/{name}"


if len(sys.argv) < 3:
    sys.exit(__doc__)
PYTHON = sys.argv[1]
for folder in sys.argv[2:]:
    number = int(folder.rsplit("-", 1)[1])
    PRELOADS[number] = os.path.realpath(f"{folder}/libjitmem-llvm-{number}.so")
unittest.main(argv=sys.argv[:1])
