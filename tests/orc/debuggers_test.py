#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Debian's gdb and perf on an LLJIT host over jitmem, in their defaults.

usage: debuggers_test.py EXECUTOR DEBUGGED OBJECT... -- [TEST...]"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

words = sys.argv[1:]
EXECUTOR, *HOST = words[: words.index("--")]
TESTS = words[words.index("--") + 1 :]
LIMIT = 300  # seconds; only what hangs takes as long


def tool(name):
    return shutil.which(name) or exit(f"{name} is not installed: .ci/setup installs it")


def host(work):
    return [HOST[0], work, *HOST[1:]]


def gdb(*commands, attach=None, **options):
    """What gdb prints."""
    command = [tool("gdb"), "-nx", "-batch"]
    if attach:
        command += ["-p", str(attach)]
    for line in ["set breakpoint pending on", *commands]:
        command += ["-ex", line]
    if not attach:
        command += ["--args", *host("call")]
    outcome = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, **options
    )
    return outcome.stdout + outcome.stderr


class GdbTest(unittest.TestCase):
    def expect(self, output, *patterns):
        """Each pattern matches somewhere after the one before it."""
        place = 0
        for pattern in patterns:
            found = re.compile(pattern, re.MULTILINE).search(output, place)
            self.assertTrue(found, f"no {pattern!r} from {place} on in:\n{output}")
            place = found.end()


class Gdb(GdbTest):
    """A program that is started under gdb needs no option."""

    def test_a_pending_breakpoint_by_name_stops(self):
        output = gdb("break linked_inner", "run", "backtrace", "continue", "delete", "continue")
        self.expect(
            output,
            r"^Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$",
            r"^#0 .*linked_inner \(n=5\)",
            r"^#1 .*linked_outer \(n=5\) at .*/stepping\.c:6$",
            r"^#2 .*main ",
            r"^Breakpoint 1, .*linked_inner \(n=1\)",
            r"^outer\(5\) = 222, in-process, mprotect$",
        )

    def test_a_breakpoint_by_address_stops(self):
        output = gdb(
            "break linked",
            "run",
            "set $outer = Outer",
            "break *$outer",
            "continue",
            "print $pc == $outer",
            "continue",
        )
        self.expect(
            output,
            r"^Breakpoint 1, linked",
            r"^Breakpoint 2, .*linked_outer ",
            r"^\$1 = (1|true)$",
            r"^outer\(5\) = 222",
        )

    def test_next_step_and_finish(self):
        output = gdb(
            "break linked_outer",
            "run",
            "step",
            "next",
            "next",
            "info locals",
            "finish",
            "next",
            "continue",
        )
        self.expect(
            output,
            r"^Breakpoint 1, .*linked_outer \(n=5\)",
            r"^linked_inner \(n=5\) at ",
            r"^8\s+linked_steps \+= twice;$",
            r"^9\s+return linked_steps;$",
            r"^twice = 10$",
            r"^Value returned is \$1 = 110$",
            r"^7\s+int second = linked_inner\(1\);$",
            r"^outer\(5\) = 222",
        )

    def test_watch_stops_where_linked_data_changes(self):
        output = gdb(
            "break linked_inner", "run", "delete", "watch linked_steps", "continue", "continue"
        )
        self.expect(
            output,
            r"^Old value = 100$",
            r"^New value = 110$",
            r"linked_inner \(n=5\) at ",
            r"^Old value = 110$",
            r"^New value = 112$",
        )

    def test_gdb_attaches_later_where_the_environment_says_so(self):
        environment = {**os.environ, "JITMEM_DEBUG": "1"}
        reading, writing = os.pipe()
        with subprocess.Popen(
            host("wait"), stdin=reading, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                self.assertEqual(process.stdout.readline(), "in-process, mprotect\n")
                output = gdb(
                    "break linked_inner",
                    f"shell echo > /dev/fd/{writing}",
                    "continue",
                    "backtrace",
                    "delete",
                    "continue",
                    attach=process.pid,
                    pass_fds=[writing],
                )
                self.assertEqual(process.wait(LIMIT), 0, output)
                self.expect(
                    output,
                    r"^Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$",
                    r"^#1 .*linked_outer \(n=5\)",
                    r"^#2 .*main ",
                )
                self.assertIn("outer(5) = 222", process.stdout.read())
            finally:
                process.kill()
                os.close(reading)
                os.close(writing)


class GdbExecutor(GdbTest):
    """Code in jitmem-executor, which tells its controller to use private pages then."""

    def run_executor(self, executor, environment):
        outcome = subprocess.run(
            host("executor"),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, "EXECUTOR": executor, **environment},
            check=False,
        )
        output = outcome.stdout + outcome.stderr
        self.assertEqual(outcome.returncode, 0, output)
        self.assertIn("outer(5) = 222, remote, LLVM's service", output)
        return output

    def test_an_executor_under_gdb(self):
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(folder, "executor")
            with open(script, "w", encoding="utf-8") as file:
                file.write(
                    f"#!/bin/sh\nexec {tool('gdb')} -nx -batch -ex 'set breakpoint pending on' "
                    "-ex 'break linked_inner' -ex run -ex backtrace -ex 'watch linked_steps' "
                    "-ex continue -ex delete -ex finish -ex continue "
                    f"--args {EXECUTOR} \"$@\"\n"
                )
            os.chmod(script, 0o755)
            self.expect(
                self.run_executor(script, {}),
                r"hit Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$",
                r"^#1 .*linked_outer \(n=5\)",
                r"^Old value = 100$",
                r"^New value = 110$",
                r"^Value returned is \$1 = 110$",
            )

    def test_an_executor_whose_environment_says_so(self):
        self.run_executor(EXECUTOR, {"JITMEM_DEBUG": "1"})


class Profile(unittest.TestCase):
    """Samples have the names of linked functions."""

    def record(self, work, folder, *options):
        # cpu-clock is the kernel's timer, which needs no performance counters of the processor.
        data = os.path.join(folder, "perf.data")
        command = [tool("perf"), "record", "-q", "-e", "cpu-clock:u", *options, "-o", data, "--"]
        environment = {**os.environ, "JITDUMPDIR": folder, "HOME": folder}
        outcome = subprocess.run(
            [*command, *host(work)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=environment,
            check=False,
        )
        if outcome.returncode and re.search(
            "perf_event_paranoid|not permitted|not supported|No permission", outcome.stderr
        ):
            self.skipTest(f"this system does not allow profiling: {outcome.stderr.strip()}")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("in-process, two views: ", outcome.stdout)
        return data

    def symbols(self, data):
        report = [tool("perf"), "script", "-i", data, "-F", "ip,sym"]
        outcome = subprocess.run(report, capture_output=True, text=True, timeout=LIMIT, check=True)
        names = [line.split()[1] for line in outcome.stdout.splitlines() if len(line.split()) > 1]
        self.assertTrue(names, outcome.stderr)
        return names


class Perf(Profile):
    """With what a host writes for perf."""

    def test_names_come_from_a_perf_map(self):
        with tempfile.TemporaryDirectory() as folder:
            names = self.symbols(self.record("perf-map", folder))
            self.assertGreater(names.count("spin_of_the_map"), len(names) // 2, names)


class JITDump(Profile):
    """With what ORC writes for perf."""

    def test_names_come_from_a_jitdump(self):
        with tempfile.TemporaryDirectory() as folder:
            data = self.record("jitdump", folder, "-k", "mono")
            injected = os.path.join(folder, "injected.data")
            inject = [tool("perf"), "inject", "--jit", "-i", data, "-o", injected]
            subprocess.run(inject, capture_output=True, timeout=LIMIT, check=True, cwd=folder)
            names = self.symbols(injected)
            self.assertGreater(names.count("spin"), len(names) // 2, names)


class Result(unittest.TextTestResult):
    """One line that ctest can find, so that what was skipped is not counted as passed."""

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"SKIPPED: {test.id()}: {reason}", flush=True)


if __name__ == "__main__":
    runner = unittest.TextTestRunner(resultclass=Result, verbosity=2)
    unittest.main(argv=[sys.argv[0], *TESTS], testRunner=runner, warnings="error")
