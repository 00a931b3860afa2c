# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Real controllers run real programs through our executor, and the stock one gives the same."""

import functools
import itertools
import os
import subprocess
import unittest

import controllers
import programs
from catalogue import BARE, BOTH, DEFECTS, PROGRAMS, RUNTIME, defect
from controllers import MODES

# The library's own share: that it is the same behind its C API.
IN_HOSTS = ("arguments", "exceptions", "exit", "zero-fill")


def merged(files):
    """Objects as one: LLVM 19 calls main before the others are finalized."""
    one = programs.objects("-".join([files[0], str(len(files))]).replace(".o", "") + ".o")
    if not os.path.exists(one[0]):
        subprocess.run(["ld", "-r", "-o", *one, *programs.objects(*files)], check=True)
    return one


def words_of(llvm, program):
    """What a controller is given."""
    several = llvm == 19 and len(program.files) > 1 and "libparts.a" not in program.files
    linked = merged(program.files) if several else programs.objects(*program.files)
    return [*program.options, *linked, *(["-args", *program.args] if program.args else [])]


def runs_of(llvm, mode, linked, program, executors, **options):
    """What comes of a program, by executor."""
    words = words_of(llvm, program)
    options = {"text": program.text, **options}

    def run(executor):
        return controllers.jitlink(llvm, mode, executor, words, linked == RUNTIME, **options)

    return controllers.at_once(run, executors)


def expected(llvm, program, ran):
    """Whether a run is what should come of the program."""
    answer = (program.output, program.status)
    right = (ran.output, ran.status) == answer and program.complaint in ran.complaint
    # LLVM 19 closes its end while another of its threads reads there, and takes what that is told for a failure.
    closed = llvm == 19 and "disconnecting" in ran.complaint and "Bad file descriptor" in ran.complaint
    return right and (ran.code in program.codes(llvm) or closed and ran.code == 1)


@functools.cache
def shown(llvm, mode, linked, name):
    """Whether the stock executor can't run a program either."""
    program = PROGRAMS[name]
    runs = runs_of(llvm, mode, linked, program, [programs.stock_executor(llvm)])
    return not any(expected(llvm, program, ran) for ran in runs.values())


class Controllers(unittest.TestCase):
    """One test for each controller, mode and program; made below."""

    maxDiff = None

    def check(self, llvm, mode, linked, name, program):
        stock = programs.stock_executor(llvm)
        key = defect(llvm, mode, linked, name)
        if key:
            # Where nothing runs, one program shows it.
            example = key[3] or "arguments"
            self.assertTrue(shown(llvm, mode, linked, example), "stock runs it, so ours must")
            self.skipTest(DEFECTS[key])
        executors = [programs.PROGRAM]
        if name in IN_HOSTS and linked == BARE:
            executors += programs.HOSTS.values()
        if program.stock:
            executors.append(stock)
        for executor, ran in runs_of(llvm, mode, linked, program, executors).items():
            with self.subTest(executor=executor):
                self.assertTrue(expected(llvm, program, ran), ran)
                self.assertEqual(ran.shared_memory, [])
                if executor != stock:
                    # Controllers say this and that of their own; the executor itself nothing else.
                    lines = ran.complaint.splitlines()
                    said = [line.split(" at ")[0] for line in lines if line.startswith(executor)]
                    told = f"{executor}: killed by signal {-program.status} ({program.signal})"
                    self.assertEqual(said, [told] if program.signal else [])


def add(llvm, mode, linked, name, program):
    def test(self):
        self.check(llvm, mode, linked, name, program)

    kind = "_runtime" if linked == RUNTIME else ""
    label = f"test_{llvm}_{mode}{kind}_{name}".replace("-", "_")
    test.__doc__ = f"LLVM {llvm}, {mode}, {linked}: {name}"
    test.cell = (llvm, mode, linked, name)
    setattr(Controllers, label, test)


for llvm, modes in MODES.items():
    for mode in modes:
        for linked in BOTH if programs.orc_runtime(llvm) else (BARE,):
            for name, program in PROGRAMS.items():
                if linked in program.linked and llvm in program.llvm:
                    add(llvm, mode, linked, name, program)


class OneStream(unittest.TestCase):
    """Where stdout and stderr are one pipe, what the order is in which they get there."""

    def test_what_is_buffered_follows_what_is_not(self):
        wanted = {"stdio": "2 lines\n1: one\n2: two\n", "exit": "first last 7\n"}
        for llvm, (name, output) in itertools.product(programs.LLVM, wanted.items()):
            executors = [programs.PROGRAM, programs.stock_executor(llvm)]
            runs = runs_of(llvm, "generic", BARE, PROGRAMS[name], executors, merged=True)
            for executor, ran in runs.items():
                with self.subTest(llvm=llvm, program=name, executor=executor):
                    # The controller's own words come when the executor has ended.
                    self.assertEqual(ran.output[: len(output)], output)


class COnly(unittest.TestCase):
    """An executor that was told to stay without C++."""

    def test_c_runs_and_cxx_does_not(self):
        host = programs.HOSTS["shared library"]
        for llvm in (19, 22):
            with self.subTest(llvm=llvm):
                c, cxx = (
                    runs_of(
                        llvm,
                        "generic",
                        BARE,
                        PROGRAMS[name],
                        [host],
                        environment={"EXECUTOR_C_ONLY": "1"},
                    )[host]
                    for name in ("arguments", "exceptions")
                )
                self.assertEqual((c.code, c.status), (42, 0), c)
                self.assertEqual((cxx.code, cxx.status), (1, 0), cxx)
                self.assertIn("__cxa", cxx.complaint)


if __name__ == "__main__":
    unittest.main()
