# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What the process inherits, and what its programs inherit and find in it."""

import os
import signal
import subprocess
import tempfile
import unittest

import programs
from controllers import jitlink
from sessions import EXECUTOR, RUN, Case, library, resolve, start
from wire import Ended, u32, u64


class Inherited(Case):
    def test_what_is_ignored_stays_ignored(self):
        # Python ignores the signal.
        for restore in (False, True):
            with start(restore_signals=restore) as session:
                args = u64(resolve(session, "raise")) + u32(signal.SIGPIPE)
                session.start(RUN + "_int_function_wrapper", args)
                if restore:
                    with self.assertRaises(Ended):
                        session.receive()
                    self.assertEqual(session.process.wait(60), -signal.SIGPIPE)
                else:
                    self.assertEqual(session.receive()[3], u32(0))

    def test_a_closed_descriptor_is_not_taken_for_the_other(self):
        reader, writer = os.pipe()
        top = os.open("/dev/null", os.O_RDONLY)
        os.close(top)
        ran = subprocess.run(
            [EXECUTOR, f"filedescs={reader},{top}"],
            pass_fds=(reader,),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(reader)
        os.close(writer)
        self.assertEqual(ran.returncode, 1)
        self.assertIn(f"take descriptor {top}: Bad file descriptor", ran.stderr.decode())

    def test_what_can_not_be_printed_is_a_failure(self):
        for word in ("--help", "--version", "--no-such"):
            with open("/dev/full", "wb") as full:
                ran = subprocess.run([EXECUTOR, word], stdout=full, stderr=full, timeout=60)
                self.assertEqual(ran.returncode, 1)


class Programs(Case):
    def test_children_that_come_to_the_end_of_main(self):
        ran = jitlink(22, "generic", EXECUTOR, programs.objects("returns.o"))
        self.assertEqual((ran.code, ran.output), (7, "child parent"), ran)

    def test_libraries_that_do_not_say_what_they_need(self):
        text = "double cos(double); int angle(void) { volatile double x = 0; return 41 + cos(x); }"
        with tempfile.TemporaryDirectory() as folder:
            path = programs.shared_object(folder, "libangle.so", text)
            with start() as session:
                self.assertTrue(library(session, path))
                function = u64(resolve(session, "angle", path))
                self.assertEqual(session.call(RUN + "_void_function_wrapper", function), u32(42))
                self.assertEnds(session, 0)


if __name__ == "__main__":
    unittest.main()
