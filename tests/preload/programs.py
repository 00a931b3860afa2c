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
                timeout=300,  # where a lock is held it never ends
                env={**os.environ, "LD_PRELOAD": PRELOADS[preload], "JITMEM_PRELOAD_REPORT": str(report), **environment},
            )
            self.assertEqual(0, run.returncode, (run.stdout, run.stderr))
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
        self.assertEqual(("hello\n", ""), (output, complaint))
        self.assertRegex(report["llvm"], "/libLLVM.so.19.1$")
        self.assertEqual('"libjitmem-llvm-22.so is for programs with libLLVM.so.22.1"', report["note"])
        self.not_on_jitmem(report)

    def compile(self, folder, name, *flags, version=None, source=None):
        """Compiles a C file of this folder, or a text, which uses LLVM's C API if there is a version."""
        if version:
            found = subprocess.run([tool(version, "llvm-config"), "--cflags", "--ldflags", "--libs", "--link-shared"],
                                   check=True, capture_output=True, text=True).stdout.split()
            flags = *flags, *found
        path = source or pathlib.Path(__file__).with_name(name + ".c")
        subprocess.run(["cc", "-O2", "-xc", "-" if source else path, "-xnone", "-o", f"{folder}/{name}", *flags],
                       input=source, text=True, check=True)
        return f"{folder}/{name}"

    def test_a_plugin_of_the_host_that_ends_with_the_call(self):
        with tempfile.TemporaryDirectory() as folder:
            plugin = self.compile(folder, "plugin", "-shared", "-fPIC", version=22)
            # The call is a jump: no return address tells of the plugin.
            code = subprocess.run(["objdump", "-d", plugin], check=True, capture_output=True, text=True).stdout
            self.assertRegex(code, r"(jmp|b)\s.*<LLVMOrcCreateLLJIT@plt>")
            for version in None, 19:  # the host's own LLVM
                flags = ["-DHOST_HAS_LLVM"] if version else []
                host = self.compile(folder, "plugin_host", *flags, version=version)
                with self.subTest(version=version):
                    output, complaint, report = self.run_with(22, host, plugin)
                    self.assertEqual(("42\n", ""), (output, complaint))
                    self.on_jitmem(report)

    def test_another_build_of_the_same_llvm_is_named_and_left_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            versions = pathlib.Path(folder, "versions")
            versions.write_text("LLVM_22.1 { global: *; };")
            calls = "void *LLVMOrcCreateLLJIT(void **, void *);"
            library = self.compile(folder, "libLLVM-other.so", "-shared", "-fPIC", f"-Wl,--version-script={versions}",
                                   source=calls + "void *LLVMOrcCreateLLJIT(void **jit, void *b) { (void)b; *jit = jit; return 0; }")
            plugin = self.compile(folder, "plugin", "-shared", "-fPIC", library,
                                  source=calls + "void *begin(void) { return 0; } int answer(void *jit) { return jit ? 42 : 0; }"
                                         "void *make(void **jit, void *b) { return LLVMOrcCreateLLJIT(jit, b); }")
            output, complaint, report = self.run_with(22, self.compile(folder, "plugin_host"), plugin)
        self.assertEqual("42\n", output)
        self.assertRegex(complaint, r"^jitmem: libjitmem-llvm-22.so steps aside in plugin_host: it uses the LLVM in \S+/libLLVM-other.so, ")
        self.not_on_jitmem(report)

    def test_a_program_that_names_no_version(self):
        # dlsym finds LLVM's own functions, of the LLVM that it would find without the library.
        with tempfile.TemporaryDirectory() as folder:
            host = self.compile(folder, "unversioned", version=19, source="""
                #include <dlfcn.h>
                #include <stdio.h>
                #include <llvm-c/LLJIT.h>
                int main(void) { LLVMOrcDisposeLLJITBuilder(LLVMOrcCreateLLJITBuilder()); Dl_info of;
                  return !dladdr(dlsym(RTLD_DEFAULT, "LLVMOrcCreateLLJIT"), &of) || puts(of.dli_fname) < 0; }""")
            output, complaint, report = self.run_with(22, host)
        self.assertRegex(output, "/libLLVM.so.19.1$")
        self.assertEqual("", complaint)
        self.not_on_jitmem(report)

    def test_two_preloads(self):
        for order in (22, 14), (14, 22):
            with self.subTest(order=order), tempfile.TemporaryDirectory() as folder:
                report = pathlib.Path(folder, "report")
                environment = {**os.environ, "LD_PRELOAD": " ".join(PRELOADS[number] for number in order),
                               "JITMEM_PRELOAD_REPORT": str(report)}
                run = subprocess.run([tool(22, "lli")], input=HELLO, capture_output=True, text=True, env=environment)
                self.assertEqual((0, "hello\n", ""), (run.returncode, run.stdout, run.stderr))
                self.assertEqual(["0", "1"], sorted(re.findall(r"layers=(\d+)", report.read_text())))
                report.unlink()
                subprocess.run(["/bin/true"], check=True, env=environment)
                self.assertEqual(["none", "none"], re.findall(r"llvm=(\S+)", report.read_text()))

    def test_programs_end_at_no_window(self):
        with tempfile.TemporaryDirectory() as folder:
            jit = self.compile(folder, "jit", version=22)
            for kind in "jitlink", "rtdyld":
                # The first JIT fills a window in which the second has something; a large object.
                for sizes in ["b1000", "a700000000", "a700000000", "a500000000", "b300000000"], ["a1200000000"]:
                    with self.subTest(kind=kind, sizes=sizes):
                        output, complaint, report = self.run_with(22, jit, kind, *sizes)
                        self.assertEqual(("42\n" * len(sizes), ""), (output, complaint))
                        self.assertEqual((len(sizes), len(sizes), 0), (report["allocations"], report["deallocations"], report["failures"]))

    def test_a_child_of_a_raw_fork_has_llvms_memory(self):
        with tempfile.TemporaryDirectory() as folder:
            jit = self.compile(folder, "jit", version=22)
            for kind in "jitlink", "rtdyld":
                with self.subTest(kind=kind):
                    output, complaint, report = self.run_with(22, jit, kind, "a1", "rawfork")
                    self.assertEqual("42\n42\n42\n", output)
                    self.assertRegex(complaint, "steps aside in jit: a JIT of it stays as it is: this process was made by _Fork or clone")
                    self.assertEqual(report["allocations"], report["deallocations"], report)

    def test_fork_handlers_that_are_older_than_the_first_jit(self):
        with tempfile.TemporaryDirectory() as folder:
            jit = self.compile(folder, "jit", version=22)
            for kind in "jitlink", "rtdyld":
                for handler in "prepare", "child":
                    with self.subTest(kind=kind, handler=handler):
                        output, complaint, report = self.run_with(22, jit, kind, handler, "a1", "b1", "fork")
                        self.assertEqual(("42\n42\n", ""), (output, complaint))

    def test_relative_paths_are_those_of_the_beginning(self):
        with tempfile.TemporaryDirectory() as folder:
            jit = self.compile(folder, "jit", version=22)
            os.symlink(os.path.dirname(PRELOADS[22]), folder + "/here")
            run = subprocess.run([jit, "jitlink", "chdir", "a1"], cwd=folder, capture_output=True, text=True,
                                 env={**os.environ, "LD_PRELOAD": "./here/libjitmem-llvm-22.so", "JITMEM_PRELOAD_REPORT": "report"})
            self.assertEqual((0, "42\n", ""), (run.returncode, run.stdout, run.stderr))
            self.assertIn("layers=2 allocations=1 ", pathlib.Path(folder, "report").read_text())

    def test_a_report_that_cannot_be_written_is_told_of(self):
        # /dev/full is a disk without room.
        for path, why in ("/nowhere/report", "No such file or directory"), ("/dev/full", "No space left on device"):
            run = subprocess.run(["/bin/true"], capture_output=True, text=True,
                                 env={**os.environ, "LD_PRELOAD": PRELOADS[22], "JITMEM_PRELOAD_REPORT": path})
            self.assertEqual(0, run.returncode)
            self.assertRegex(run.stderr, f"^jitmem: libjitmem-llvm-22.so: add the report of true to {path}: {why}; have ")

    def test_a_line_that_is_not_read_ends_no_program(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as nothing:
            # By SIGPIPE's own effect, which the interpreter switches off for itself alone.
            run = subprocess.run(["/bin/true"], stderr=nothing, env={**os.environ, "LD_PRELOAD": PRELOADS[22], "JITMEM_PRELOAD_REPORT": "1"})
        self.assertEqual(0, run.returncode)

    def test_memory_that_cannot_be_read_is_passed_over(self):
        with tempfile.TemporaryDirectory() as folder:
            library = self.compile(folder, "libhidden.so", "-shared", "-fPIC", source="int hidden(void) { return 0; }")
            program = self.compile(folder, "hides", library, f"-Wl,-rpath,{folder}", source="""#define _GNU_SOURCE
                #include <dlfcn.h>
                #include <sys/mman.h>
                int hidden(void);
                int main(void) { Dl_info of;
                  return hidden() || !dladdr((void *)hidden, &of) || mprotect(of.dli_fbase, 4096, PROT_NONE); }""")
            _, complaint, report = self.run_with(22, program)
        self.assertEqual("", complaint)
        self.assertEqual("none", report["llvm"])

    def test_llvm_in_the_program_itself_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            # Stands for a program with LLVM in it: what is looked for is LLVM's message.
            subprocess.run(["cc", "-xc", "-", "-o", folder + "/static"], check=True, text=True,
                           input='#include <stdio.h>\nint main(int c, char **v) { if (c > 1) puts("LLVM ERROR: "); return 0; }')
            _, complaint, report = self.run_with(22, folder + "/static")
        self.assertEqual(("", "the"), (complaint, report["llvm"]))
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
