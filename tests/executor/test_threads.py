# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Programs in flight: a thread for each, with a stack that fits."""

import re
import subprocess
import time
import unittest

from sessions import EXECUTOR, NOTHING, READ, RUN, Case, load, reserve, resolve, start
from wire import u32, u64

EOF_CHARACTER = u32(0xFFFFFFFF)


def waiting(session, count):
    """Starts programs that wait for the end of stdin; their calls."""
    args = u64(resolve(session, "getchar"))
    return {session.start(RUN + "_void_function_wrapper", args) for _ in range(count)}


def status(session, name):
    with open(f"/proc/{session.process.pid}/status") as text:
        return int(re.search(f"^{name}:\\s*(\\d+)", text.read(), re.M)[1])


def answers(session, calls):
    """What has come for each call, in any order."""
    found = {}
    while calls - found.keys():
        _, number, _, body = session.receive()
        found[number] = body
    return found


class InFlight(Case):
    def wait_for_threads(self, session, count):
        limit = time.monotonic() + 60
        while status(session, "Threads") < count:
            self.assertIsNone(session.process.poll())
            self.assertLess(time.monotonic(), limit)

    def test_a_thousand_under_a_limit_of_address_space(self):
        with start(options=["--seccomp=sealed", "--rlimit-as=4G"], stdin=subprocess.PIPE) as session:
            reserve(session, 1 << 30)
            calls = waiting(session, 1000)
            self.wait_for_threads(session, 1000)
            # One for each beside those that read.
            self.assertLess(status(session, "Threads"), 1010)
            session.process.stdin.close()
            self.assertEqual(set(answers(session, calls).values()), {EOF_CHARACTER})
            session.process.stdin = None
            self.assertEnds(session, 0)

    def test_those_that_get_no_thread_are_refused_and_the_others_run(self):
        options = ["--rlimit-as=256M", "--stack-size=32M"]
        with start(options=options, stdin=subprocess.PIPE) as session:
            calls = waiting(session, 20)
            self.assertEqual(len(calls), 20)
            # Refused calls are answered at once, and all have been read when a later one is answered.
            later = session.start(READ, NOTHING)
            refused = answers(session, {later})
            del refused[later]
            self.assertTrue(refused)
            self.assertNotIn(EOF_CHARACTER, refused.values())
            session.process.stdin.close()
            found = {**refused, **answers(session, calls - refused.keys())}
            ran = [body for body in found.values() if body == EOF_CHARACTER]
            self.assertTrue(3 <= len(ran) <= 8, len(ran))
            session.process.stdin = None
            # There is room again.
            self.assertEqual(answers(session, calls := waiting(session, 1)).keys(), calls)
            code, _, err = session.finish()
            self.assertEqual(code, 0)
            self.assertEqual(err.count("no thread can be started for it"), 20 - len(ran))

    def test_a_controller_of_ours_is_told_why_a_call_is_refused(self):
        options = ["--rlimit-as=256M", "--stack-size=32M"]
        with start(options=options, stdin=subprocess.PIPE) as session:
            # From here on numbers are those of controllers that can read it.
            session.number = 1 << 63
            calls = waiting(session, 20)
            _, refused, tag, why = session.receive()
            self.assertIn(refused, calls)
            self.assertEqual(tag, 1)
            self.assertIn(b"the executor refused the call: no thread can be started for it", why)
            session.process.stdin.close()
            answers(session, calls - {refused})
            session.process.stdin = None

    def test_stacks_are_as_large_as_asked_for(self):
        # sub rsp, n; touch; add rsp, n; xor eax, eax; ret
        def deep(session, size):
            code = b"\x48\x81\xec" + u32(size) + b"\xc6\x04\x24\x01" + b"\x48\x81\xc4" + u32(size) + b"\x31\xc0\xc3"
            return session.start(RUN + "_void_function_wrapper", u64(load(session, code)))

        for options, fits, exceeds in (
            ([], 7 << 20, 9 << 20),
            (["--stack-size=64M"], 60 << 20, 65 << 20),
            (["--stack-size=256K"], 200 << 10, 300 << 10),
            (["--rlimit-as=4G"], 7 << 20, 9 << 20),
        ):
            with self.subTest(options=options), start(options=options) as session:
                self.assertEqual(session.result(deep(session, fits)), u32(0))
                deep(session, exceeds)
                self.assertEqual(session.process.wait(60), -11)

    def test_a_stack_that_is_too_small_is_refused(self):
        command = [EXECUTOR, "--stack-size=1K", "filedescs=0,0"]
        ran = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(ran.returncode, 1)
        self.assertIn(b"--stack-size: a stack of 1024 bytes is too small", ran.stderr)


if __name__ == "__main__":
    unittest.main()
