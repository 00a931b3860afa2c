#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Debian's gdb, lldb, perf and valgrind on an LLJIT host over jitmem, in their defaults.

usage: debuggers_test.py EXECUTOR DEBUGGED OBJECT... -- [TEST...]"""

import contextlib
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
    objects = HOST[5:] if work.startswith("plugin-chain") else HOST[1:3]
    return [HOST[0], work, *objects]


def gdb(*commands, attach=None, work="call", **options):
    """What gdb prints."""
    command = [tool("gdb"), "-nx", "-batch"]
    if attach:
        command += ["-p", str(attach)]
    for line in ["set breakpoint pending on", *commands]:
        command += ["-ex", line]
    if not attach:
        command += ["--args", *host(work)]
    outcome = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, **options
    )
    return outcome.stdout + outcome.stderr


def lldb(*commands, attach=None, fifo=None, work="call"):
    """What lldb prints. A byte goes into the FIFO once there is a breakpoint in linked code."""
    command = [tool("lldb-19"), "--no-lldbinit", "--batch"]
    if attach:
        command += ["-p", str(attach)]
    for line in commands:
        command += ["-o", line]
    if not attach:
        command += ["--", *host(work)]
    output = []
    with subprocess.Popen(
        ["timeout", str(LIMIT), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            output.append(line)
            if fifo and line.startswith("Breakpoint 1: where = JIT("):
                with open(fifo, "wb") as file:
                    file.write(b"\n")
    return "".join(output)


class DebuggerTest(unittest.TestCase):
    def expect(self, output, *patterns):
        """Each pattern matches somewhere after the one before it."""
        place = 0
        for pattern in patterns:
            found = re.compile(pattern, re.MULTILINE).search(output, place)
            self.assertTrue(found, f"no {pattern!r} from {place} on in:\n{output}")
            place = found.end()

    @contextlib.contextmanager
    def waiting(self, work, mapper, **environment):
        """A host with linked code that waits for a byte in a FIFO: whom to attach to, and the FIFO. After
        the block it must end well."""
        with tempfile.TemporaryDirectory() as folder:
            fifo = os.path.join(folder, "go-on")
            os.mkfifo(fifo)
            # For reading as well, so that neither end waits for the other to open it.
            with open(fifo, "r+b", buffering=0) as stdin, subprocess.Popen(
                host(work),
                stdin=stdin,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            ) as process:
                try:
                    attach, _, found = process.stdout.readline().rstrip().partition(" ")
                    self.assertEqual(found, mapper)
                    yield attach, fifo
                    self.assertEqual(process.wait(LIMIT), 0)
                    self.assertIn("outer(5) = 222", process.stdout.read())
                finally:
                    process.kill()


def attached_gdb(process, fifo):
    return gdb(
        "break linked_inner",
        f"shell echo >{fifo}",
        "continue",
        "backtrace",
        "delete",
        "continue",
        attach=process,
    )


ATTACHED_GDB = [
    r"Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$",
    r"^#1 .*linked_outer \(n=5\)",
]


class Gdb(DebuggerTest):
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
        with self.waiting("wait", "in-process, mprotect", JITMEM_DEBUG="1") as (process, fifo):
            self.expect(attached_gdb(process, fifo), *ATTACHED_GDB, r"^#2 .*main ")


class GdbExecutor(DebuggerTest):
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
                r"Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$",
                r"^#1 .*linked_outer \(n=5\)",
                r"^Old value = 100$",
                r"^New value = 110$",
                r"^Value returned is \$1 = 110$",
            )

    def test_gdb_attaches_to_an_executor_whose_environment_says_so(self):
        remote = "remote, LLVM's service (initialize and release)"
        environment = {"EXECUTOR": EXECUTOR, "JITMEM_DEBUG": "1"}
        with self.waiting("executor-wait", remote, **environment) as (process, fifo):
            output = attached_gdb(process, fifo)
        self.expect(output, *ATTACHED_GDB)
        # Nor of the entries that are always on the list.
        self.assertNotRegex(output, "JITed symbol file|BFD: ")


def attached_lldb(process, fifo):
    return lldb(
        "breakpoint set --name linked_inner",
        "continue",
        "bt",
        "breakpoint delete --force",
        "watchpoint set variable linked_steps",
        "continue",
        "watchpoint delete --force",
        "finish",
        "detach",
        attach=process,
        fifo=fifo,
    )


ATTACHED_LLDB = [
    r"stop reason = breakpoint 1\.1",
    r"frame #0: .*`linked_inner\(n=5\) at stepped\.c:7",
    r"frame #1: .*`linked_outer\(n=5\) at stepping\.c:6",
    r"^old value: 100$",
    r"^new value: 110$",
    r"^Return value: .* = 110$",
]


class Lldb(DebuggerTest):
    """As gdb. lldb looks for the JIT interface in one image, which must be LLVM's here."""

    def test_a_pending_breakpoint_by_name_stops(self):
        output = lldb(
            "breakpoint set --name linked_inner",
            "run",
            "bt",
            "continue",
            "breakpoint delete --force",
            "continue",
        )
        self.expect(
            output,
            r"^Breakpoint 1: no locations \(pending\)\.$",
            r"stop reason = breakpoint 1\.1",
            r"frame #0: .*`linked_inner\(n=5\) at stepped\.c:7",
            r"frame #1: .*`linked_outer\(n=5\) at stepping\.c:6",
            r"frame #2: .*`main",
            r"frame #0: .*`linked_inner\(n=1\)",
        )
        self.assertIn("outer(5) = 222, in-process, mprotect", output)

    def test_a_breakpoint_by_address_stops(self):
        output = lldb(
            "breakpoint set --name linked",
            "run",
            "breakpoint set --address `(unsigned long)Outer`",
            "continue",
            "continue",
        )
        self.expect(output, r"stop reason = breakpoint 2\.1", r"frame #0: .*`linked_outer\(")
        self.assertIn("outer(5) = 222", output)

    def test_next_step_and_finish(self):
        output = lldb(
            "breakpoint set --name linked_outer",
            "run",
            "step",
            "next",
            "next",
            "frame variable",
            "finish",
            "next",
            "continue",
        )
        self.expect(
            output,
            r"stop reason = breakpoint 1\.1",
            r"`linked_inner\(n=5\) at stepped\.c:7",
            r"^-> 8\s+linked_steps \+= twice;$",
            r"^-> 9\s+return linked_steps;$",
            r"^\(int\) twice = 10$",
            r"^Return value: .* = 110$",
            r"^-> 7\s+int second = linked_inner\(1\);$",
        )
        self.assertIn("outer(5) = 222", output)

    def test_a_watchpoint_stops_where_linked_data_changes(self):
        output = lldb(
            "breakpoint set --name linked_inner",
            "run",
            "breakpoint delete --force",
            "watchpoint set variable linked_steps",
            "continue",
            "continue",
        )
        self.expect(
            output,
            r"^old value: 100$",
            r"^new value: 110$",
            r"`linked_inner\(n=5\)",
            r"^old value: 110$",
            r"^new value: 112$",
        )

    def test_lldb_attaches_later_where_the_environment_says_so(self):
        with self.waiting("wait", "in-process, mprotect", JITMEM_DEBUG="1") as (process, fifo):
            self.expect(attached_lldb(process, fifo), *ATTACHED_LLDB)


class Linking(DebuggerTest):
    """jitmem's plugin in hosts that jitmem and LLVM are linked into in several ways: debuggers read the
    list that LLVM's listener writes."""

    def test_gdb_stops_by_name(self):
        output = gdb("break linked_inner", "run", work="plugin")
        self.expect(output, r"^Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$")

    def test_lldb_stops_by_name(self):
        output = lldb("breakpoint set --name linked_inner", "run", work="plugin")
        self.expect(
            output,
            r"stop reason = breakpoint 1\.1",
            r"frame #0: .*`linked_inner\(n=5\) at stepped\.c:7",
        )


class LldbExecutor(DebuggerTest):
    """lldb gives what it starts no descriptors, so it attaches to an executor."""

    def test_lldb_attaches_to_an_executor_whose_environment_says_so(self):
        remote = "remote, LLVM's service (initialize and release)"
        environment = {"EXECUTOR": EXECUTOR, "JITMEM_DEBUG": "1"}
        with self.waiting("executor-wait", remote, **environment) as (process, fifo):
            self.expect(attached_lldb(process, fifo), *ATTACHED_LLDB)


def inject(data, folder):
    """Samples with what jitdumps say."""
    injected = os.path.join(folder, "injected.data")
    command = [tool("perf"), "inject", "--jit", "-i", data, "-o", injected]
    subprocess.run(command, capture_output=True, timeout=LIMIT, check=True, cwd=folder)
    return injected


class Profile(unittest.TestCase):
    """Samples have the names of linked functions."""

    def record(self, work, folder, *options, mapper="in-process, two views: "):
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
        self.assertIn(mapper, outcome.stdout)
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


class PerfExecutor(Profile):
    """Code in pages that jitmem-executor shares with its controller."""

    def test_names_come_from_a_perf_map(self):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["EXECUTOR"] = EXECUTOR
            names = self.symbols(self.record("executor-perf-map", folder, mapper="shared memory"))
            self.assertGreater(names.count("spin_of_the_map"), len(names) // 2, names)


class ValgrindExecutor(unittest.TestCase):
    """An executor under valgrind as it comes, which sees no code that another process writes."""

    def test_code_at_addresses_that_were_used_before_runs(self):
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(folder, "executor")
            with open(script, "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\nexec {tool("valgrind")} --quiet {EXECUTOR} "$@"\n')
            os.chmod(script, 0o755)
            outcome = subprocess.run(
                [HOST[0], "executor-reuse", *HOST[3:5]],
                capture_output=True,
                text=True,
                timeout=LIMIT,
                env={**os.environ, "EXECUTOR": script},
                check=False,
            )
            self.assertEqual(outcome.returncode, 0, outcome.stderr)
            self.assertRegex(outcome.stdout, r"^0 wrong at ([1-9]|1\d) places$")


class JITDump(Profile):
    """With what ORC writes for perf."""

    def test_names_come_from_a_jitdump(self):
        with tempfile.TemporaryDirectory() as folder:
            data = self.record("jitdump", folder, "-k", "mono")
            names = self.symbols(inject(data, folder))
            self.assertGreater(names.count("spin"), len(names) // 2, names)


class Plugin(Profile, DebuggerTest):
    """jitmem's plugin, which tells all of them."""

    def test_gdb_stops_by_name_and_forgets_what_is_removed(self):
        output = gdb(
            "break linked_inner",
            "break removed",
            "run",
            "backtrace",
            "info functions linked_inner",
            "delete 1",
            "continue",
            "info functions linked_inner",
            "continue",
            work="plugin",
        )
        self.expect(
            output,
            r"^Breakpoint 1, .*linked_inner \(n=5\) at .*/stepped\.c:7$",
            r"^#1 .*linked_outer \(n=5\) at .*/stepping\.c:6$",
            r"^6:\s+int linked_inner\(int\);$",
            r"^Breakpoint 2, removed",
            r'^All functions matching regular expression "linked_inner":$',
        )
        self.assertEqual(len(re.findall(r"int linked_inner\(int\);", output)), 1, output)
        self.assertIn("outer(5) = 222, in-process, mprotect", output)
        self.assertIn("exited normally", output)

    def test_perf_names_functions_by_the_map_and_by_the_jitdump(self):
        with tempfile.TemporaryDirectory() as folder:
            data = self.record("plugin", folder, "-k", "mono")
            perf_map = self.map_beside(folder)
            with open(perf_map, encoding="utf-8") as lines:
                named = {line.split()[2]: int(line.split()[1], 16) for line in lines if line.strip()}
            self.assertGreaterEqual(named.keys(), {"linked_inner", "linked_outer", "spin"})
            self.assertGreater(named["spin"], 8)
            names = self.symbols(data)
            self.assertGreater(names.count("spin"), len(names) // 2, names)
            os.remove(perf_map)
            names = self.symbols(inject(data, folder))
            self.assertGreater(names.count("spin"), len(names) // 2, names)

    def map_beside(self, folder):
        """The map of the process that has written a jitdump."""
        [dump] = [name for name in os.listdir(folder) if name.startswith("jit-")]
        process = re.search(r"jit-(\d+)\.dump", dump).group(1)
        return f"/tmp/perf-{process}.map"

    def chains(self, work):
        """The functions of each sample, from the innermost on, as perf unwinds them by DWARF."""
        with tempfile.TemporaryDirectory() as folder:
            options = ["-k", "mono", "-F", "500", "--call-graph", "dwarf,4096"]
            data = self.record(work, folder, *options)
            os.remove(self.map_beside(folder))
            script = [tool("perf"), "script", "-F", "ip,sym", "-i", inject(data, folder)]
            # It looks for a cache of build identifiers, and for debug information, at home.
            outcome = subprocess.run(
                script,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=True,
                env={**os.environ, "HOME": folder, "DEBUGINFOD_URLS": ""},
            )
            samples = re.split(r"\n\n+", outcome.stdout.strip())
            # Some addresses have no name.
            return [[[*line.split(), ""][1] for line in s.splitlines()] for s in samples]

    def test_perf_unwinds_through_functions_without_frame_pointers(self):
        whole = ["chain_spin", "chain_3", "chain_2", "chain_1", "chain_0", "main"]
        chains = self.chains("plugin-chain")
        found = [chain for chain in chains if chain[: len(whole)] == whole]
        self.assertGreater(len(found), len(chains) // 2, chains)
        # Of what is not said perf knows the innermost function.
        chains = self.chains("plugin-chain-by-name")
        found = [chain for chain in chains if chain[0] == whole[0]]
        self.assertGreater(len(found), len(chains) // 2, chains)
        self.assertFalse([chain for chain in chains if "chain_2" in chain])


class Result(unittest.TextTestResult):
    """One line that ctest can find, so that what was skipped is not counted as passed."""

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"SKIPPED: {test.id()}: {reason}", flush=True)


if __name__ == "__main__":
    runner = unittest.TextTestRunner(resultclass=Result, verbosity=2)
    unittest.main(argv=[sys.argv[0], *TESTS], testRunner=runner, warnings="error")
