# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What is said and how the process ends when linked code crashes, beside signal handlers of others."""

import os
import signal
import tempfile
import unittest

import programs
from controllers import jitlink
from sessions import EXECUTOR, RUN, Case, load, resolve, start
from wire import Ended, u64

CRASH = bytes.fromhex("8b042510000000 c3")  # mov eax, [16]; ret


def run_void(session, address):
    session.start(RUN + "_void_function_wrapper", u64(address))


class Crashes(Case):
    def assertDies(self, session, number):
        with self.assertRaises(Ended):
            session.receive()
        self.assertEqual(session.process.wait(60), -number)

    def test_a_trap_that_would_not_come_again(self):
        with start() as session:
            run_void(session, load(session, bytes.fromhex("cc c3")))  # int3; ret
            self.assertDies(session, signal.SIGTRAP)
            line = session.process.stderr.read().decode()
            self.assertEqual(line, f"{EXECUTOR}: killed by signal 5 (SIGTRAP)\n")

    def test_stderr_is_full_or_closed(self):
        for closed in (False, True):
            with self.subTest(closed=closed):
                reader, writer = os.pipe()
                os.set_blocking(writer, False)
                try:
                    while True:
                        os.write(writer, bytes(65536))
                except BlockingIOError:
                    os.set_blocking(writer, True)
                if closed:
                    os.close(reader)
                with start(stderr=writer) as session:
                    os.close(writer)
                    run_void(session, resolve(session, "abort"))
                    self.assertDies(session, signal.SIGABRT)
                if not closed:
                    os.close(reader)

    def test_handlers_that_call_the_one_before(self):
        for executor in (EXECUTOR, programs.stock_executor(22)):
            with self.subTest(executor=executor):
                ran = jitlink(22, "generic", executor, programs.objects("chains.o"))
                self.assertEqual((ran.code, ran.status), (1, -signal.SIGSEGV), ran)
                said = ran.complaint.count("killed by signal 11 (SIGSEGV) at address 0x10")
                self.assertEqual(said, executor == EXECUTOR, ran)

    def test_handlers_that_were_there_before(self):
        text = """
            #include <signal.h>
            #include <unistd.h>
            static void end(int signal) { _exit(70 + signal); }
            __attribute__((constructor)) static void begin(void) { signal(SIGSEGV, end); }
        """
        with tempfile.TemporaryDirectory() as folder:
            preloaded = programs.shared_object(folder, "libends.so", text)
            with start(environment={"LD_PRELOAD": preloaded}) as session:
                run_void(session, load(session, CRASH))
                self.assertEqual(session.process.wait(60), 70 + signal.SIGSEGV)
                self.assertEqual(session.process.stderr.read(), b"")


if __name__ == "__main__":
    unittest.main()
