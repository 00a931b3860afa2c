# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Real controllers run real programs through our executor, and the stock one gives the same."""

import os
import subprocess
import unittest
from dataclasses import dataclass, field

import programs

MODES = {
    14: {"generic": []},
    16: {"generic": [], "shared": ["-use-shared-memory"]},
    19: {"generic": [], "shared": ["-use-shared-memory"]},
    22: {mode: [f"-use-memmgr={mode}"] for mode in ("generic", "simple-remote", "shared")},
}


@dataclass
class Program:
    """What is linked, and what comes of it."""

    files: list
    code: int
    output: str = ""
    args: list = field(default_factory=list)
    # Words in what the controller says.
    complaint: str = ""
    # Whether the session ends in order: the program has not ended the process.
    ends: bool = True
    runtime: bool = False
    # Whether the stock executor runs it as well, every time.
    stock: bool = True


PARTS = [f"part-{number}.o" for number in range(150)]
THROWN = "negative: -7, 68\n"
SAID = "+global +main's +thread's -thread's main -global -main's "
PROGRAMS = {
    "arguments": Program(["arguments.o"], 42, "<*ne><*wo three> 1\n", ["one", "two three"]),
    "no-arguments": Program(["arguments.o"], 40, " 1\n"),
    "exceptions": Program(["catches.o", "throws.o"], 68, THROWN),
    "debug-info": Program(["catches-debug.o", "throws-debug.o"], 68, THROWN),
    "zero-fill": Program(["zeros.o"], 42),
    "weak": Program(["weak.o"], 42),
    "missing": Program(["missing.o"], 1, complaint="nowhere_at_all"),
    "exit": Program(["exits.o"], 1, "first last 7\n", complaint="disconnecting", ends=False),
    "uncaught": Program(["uncaught.o"], 1, complaint="what():  not caught", ends=False),
    "objects": Program(["parts.o", *PARTS], 150),
    "archive": Program(["parts.o", "libparts.a"], 150),
    "runtime-arguments": Program(
        ["arguments.o"], 42, "<*ne><*wo three> 1\n", ["one", "two three"], runtime=True
    ),
    "runtime-exceptions": Program(["catches.o", "throws.o"], 68, THROWN, runtime=True),
    # The stock executor answers before main's thread-locals end, and their code goes meanwhile.
    "runtime-lifetimes": Program(["lifetimes.o"], 42, SAID, runtime=True, stock=False),
}


@dataclass
class Run:
    code: int
    output: str
    complaint: str
    report: str


# What a controller can not do with any executor, its own included.
DEFECTS = {
    (14, "runtime"): "LLVM 14 has no ORC runtime for ELF that llvm-jitlink could load",
    (19, "objects"): "LLVM 19 calls main before all objects are finalized",
    (19, "archive"): "LLVM 19 calls main before all objects are finalized",
    (19, "shared", "runtime"): "LLVM 19 calls the runtime before it is finalized",
    (19, "runtime-exceptions"): "LLVM 19 does not register eh-frames where there is a runtime",
}


def defect(llvm, mode, name, program):
    kind = "runtime" if program.runtime else ""
    keys = [(llvm, name), (llvm, kind), (llvm, mode, kind)]
    return next((DEFECTS[key] for key in keys if key in DEFECTS), None)


def merged(files):
    """Objects as one, for LLVM 19: see `DEFECTS`."""
    one = programs.objects("-".join(files).replace(".o", "") + "-merged.o")
    if not os.path.exists(one[0]):
        subprocess.run(["ld", "-r", "-o", *one, *programs.objects(*files)], check=True)
    return one


def run(llvm, mode, program, executor, environment=None):
    command = [programs.controller(llvm), f"-oop-executor={executor}", *MODES[llvm][mode]]
    # LLVM 19's threads race with each other in the controller itself.
    pin = (lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})) if llvm == 19 else None
    if program.runtime:
        command.append(f"-orc-runtime={programs.orc_runtime(llvm)}")
    several = llvm == 19 and len(program.files) > 1
    command += merged(program.files) if several else programs.objects(*program.files)
    if program.args:
        command += ["-args", *program.args]
    # The executor inherits the pipe, so its end is the end of both processes.
    ended, report = os.pipe()
    environment = dict(
        os.environ,
        EXECUTOR_LLVM=str(llvm),
        EXECUTOR_REPORT=f"/dev/fd/{report}",
        **(environment or {}),
    )
    process = subprocess.Popen(
        command,
        env=environment,
        pass_fds=(report,),
        preexec_fn=pin,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(report)
    try:
        output, complaint = process.communicate(timeout=120)
        with os.fdopen(ended) as pipe:
            report = pipe.read()
    finally:
        process.kill()
    return Run(process.returncode, output.decode(), complaint.decode(), report)


class Controllers(unittest.TestCase):
    """One test for each controller, mode and program; made below."""

    maxDiff = None

    def check(self, llvm, mode, name, program):
        reason = defect(llvm, mode, name, program)
        if reason:
            self.skipTest(reason)
        if not programs.controller(llvm):
            self.skipTest(f"llvm-jitlink-{llvm} is not installed")
        if program.runtime and not programs.orc_runtime(llvm):
            self.skipTest(f"the ORC runtime of LLVM {llvm} is not installed")
        before = programs.shared_memory()
        for kind, executor in programs.EXECUTORS.items():
            with self.subTest(executor=kind):
                ours = run(llvm, mode, program, executor)
                self.assertEqual((ours.code, ours.output), (program.code, program.output), ours)
                self.assertIn(program.complaint, ours.complaint)
                # Controllers say this and that of their own; the executor itself nothing.
                self.assertNotIn(f"{executor}: ", ours.complaint)
                self.assertEqual(ours.report, "ended" if program.ends else "")
        if program.stock:
            with self.subTest(executor="stock"):
                stock = run(llvm, mode, program, programs.stock_executor(llvm))
                self.assertEqual((stock.code, stock.output), (program.code, program.output), stock)
        self.assertEqual(programs.shared_memory() - before, set())


def add(llvm, mode, name, program):
    def test(self):
        self.check(llvm, mode, name, program)

    label = f"test_{llvm}_{mode}_{name}".replace("-", "_")
    test.__doc__ = f"LLVM {llvm}, {mode}: {name}"
    setattr(Controllers, label, test)


for llvm, modes in MODES.items():
    for mode in modes:
        for name, program in PROGRAMS.items():
            add(llvm, mode, name, program)


class COnly(unittest.TestCase):
    """An executor that was told to stay without C++."""

    def test_c_runs_and_cxx_does_not(self):
        for llvm in (19, 22):
            with self.subTest(llvm=llvm):
                environment = {"EXECUTOR_C_ONLY": "1"}
                executor = programs.EXECUTORS["shared library"]
                c = run(llvm, "generic", PROGRAMS["arguments"], executor, environment)
                self.assertEqual((c.code, c.report), (42, "ended"), c)
                cxx = run(llvm, "generic", PROGRAMS["exceptions"], executor, environment)
                self.assertEqual((cxx.code, cxx.report), (1, "ended"), cxx)
                self.assertIn("__cxa", cxx.complaint)


if __name__ == "__main__":
    unittest.main()
