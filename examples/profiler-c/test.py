#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Debian's perf and gdb name the functions that the example links without LLVM.

usage: test.py PROGRAM"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.path.abspath(sys.argv.pop())
LIMIT = 300  # seconds; only what hangs takes as long


def tool(name):
    return shutil.which(name) or sys.exit(f"{name} is not installed: .ci/setup installs it")


class ProfilerTest(unittest.TestCase):
    def run_tool(self, *command):
        """What the command prints; it must succeed."""
        outcome = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=self.folder
        )
        self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)
        return outcome.stdout + outcome.stderr

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def record(self, *options):
        """Samples of the program, as perf names them without jitdump."""
        command = [tool("perf"), "record", "-e", "cpu-clock:u", "-F", "2000", "-o", "perf.data"]
        outcome = subprocess.run(
            [*command, *options, "--", PROGRAM, "300", "."],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            cwd=self.folder,
        )
        if outcome.returncode != 0 and re.search(
            "perf_event_paranoid|not permitted|not supported|No permission", outcome.stderr
        ):
            self.skipTest("this system does not let perf sample: " + outcome.stderr)
        self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)

    def names(self, data):
        """How many samples each symbol has."""
        script = self.run_tool(tool("perf"), "script", "-i", data, "-F", "ip,sym")
        counts = {}
        for line in script.splitlines():
            name = line.split(maxsplit=1)[-1] if line.strip() else "none"
            counts[name] = counts.get(name, 0) + 1
        return counts

    def check(self, data):
        counts = self.names(data)
        found = counts.get("linked_spin", 0)
        self.assertGreater(found, sum(counts.values()) // 2, counts)
        self.assertNotIn("linked_gone", counts, "it was there before, and never ran")

    def test_perf_names_the_function_by_its_map(self):
        self.record()
        self.check("perf.data")
        [dump] = glob.glob(os.path.join(self.folder, "jit-*.dump"))
        process = re.search(r"jit-(\d+)\.dump", dump).group(1)
        with open(f"/tmp/perf-{process}.map", encoding="utf-8") as lines:
            names = [line.split()[2] for line in lines if line.strip()]
        self.assertEqual(names, ["linked_spin"])
        os.remove(f"/tmp/perf-{process}.map")

    def test_perf_names_the_function_by_jitdump(self):
        self.record("-k", "mono")
        for path in glob.glob(os.path.join(self.folder, "jit-*.dump")):
            process = re.search(r"jit-(\d+)\.dump", path).group(1)
            os.remove(f"/tmp/perf-{process}.map")
        self.run_tool(tool("perf"), "inject", "--jit", "-i", "perf.data", "-o", "jit.data")
        self.check("jit.data")

    def test_gdb_stops_at_the_function_by_its_name(self):
        command = [tool("gdb"), "-nx", "-batch"]
        for line in (
            "set breakpoint pending on",
            "break linked_spin",
            "run",
            "backtrace 1",
            "delete",
            "continue",
        ):
            command += ["-ex", line]
        output = self.run_tool(*command, "--args", PROGRAM, "1")
        self.assertRegex(output, r"Breakpoint 1, 0x[0-9a-f]+ in linked_spin \(\)")
        self.assertRegex(output, r"#0 +0x[0-9a-f]+ in linked_spin \(\)")
        self.assertIn("linked_spin(1000000) = 42", output)
        self.assertRegex(output, r"exited normally")
        process = re.search(r"\[Inferior 1 \(process (\d+)\) exited normally\]", output).group(1)
        os.remove(f"/tmp/perf-{process}.map")


if __name__ == "__main__":
    unittest.main()
