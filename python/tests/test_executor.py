# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
import errno
import os
import signal
import threading
import unittest
from pathlib import Path
from unittest import mock

import code_samples as samples
import jitmem
from jitmem import READ_EXEC, MapperKind, Status


class ExecutorTest(unittest.TestCase):
    def test_linked_code_runs_there(self):
        for remote, kind in (False, MapperKind.SHARED), (True, MapperKind.REMOTE):
            with jitmem.Executor() as executor, jitmem.Manager(executor, remote=remote) as manager:
                with manager.link((READ_EXEC, samples.TWICE)) as allocation:
                    self.assertEqual(executor.run(allocation.addresses[0], 21), 42)
                self.assertEqual(manager.stats().mapper, kind)

    def test_the_end_is_reported(self):
        executor = jitmem.Executor()
        self.assertEqual(executor.close(), jitmem.End(0, None))

    def test_an_error_is_seen_though_managers_are_open(self):
        with self.assertRaises(ZeroDivisionError), jitmem.Executor() as executor:
            manager = jitmem.Manager(executor)
            allocation = manager.link((READ_EXEC, samples.TWICE))
            raise ZeroDivisionError
        with self.assertRaises(jitmem.Error):
            manager.stats()
        with self.assertRaises(ValueError):
            allocation.function(None)

    def test_what_runs_for_ever_is_killed_on_request(self):
        executor = jitmem.Executor()
        loop = jitmem.Manager(executor).link((READ_EXEC, samples.LOOP))
        failures = []

        def run():
            try:
                executor.run(loop.addresses[0], 0)
            except jitmem.Error as error:
                failures.append(error.status)

        thread = threading.Thread(target=run)
        thread.start()
        ticks = 0
        while ticks < 5:  # of the processor's time that the loop takes
            ticks = int(Path(f"/proc/{executor.process.pid}/stat").read_text().split()[13])
        self.assertEqual(executor.close(timeout=0.5), jitmem.End(None, signal.SIGKILL))
        thread.join()
        self.assertEqual(failures, [Status.DISCONNECTED])

    def test_a_dropped_manager_does_not_keep_its_executor(self):
        executor = jitmem.Executor()
        with self.assertWarnsRegex(ResourceWarning, "a jitmem.Manager was dropped"):
            jitmem.Manager(executor).link((READ_EXEC, samples.TWICE))
        # Seconds, after which it would be killed.
        self.assertEqual(executor.close(timeout=20), jitmem.End(0, None))

    def test_a_close_that_was_interrupted_can_be_called_again(self):
        executor = jitmem.Executor()
        manager = jitmem.Manager(executor)
        for interrupted, close in (manager, manager.close), (executor, executor.close):
            with mock.patch.object(interrupted, "wait_for_calls", side_effect=KeyboardInterrupt):
                with self.assertRaises(KeyboardInterrupt):
                    close()
        self.assertEqual(executor.close(timeout=20), jitmem.End(0, None))

    def test_a_child_does_not_close_its_parents(self):
        with jitmem.Executor() as executor, jitmem.Manager(executor) as manager:
            child = os.fork()
            if child == 0:
                try:
                    executor.close()
                except RuntimeError:
                    os._exit(0)
                os._exit(1)
            self.assertEqual(os.waitpid(child, 0), (child, 0))
            self.assertEqual(executor.run(manager.link((READ_EXEC, samples.TWICE)).addresses[0], 3), 6)

    def test_a_crash_is_an_error_and_another_executor_takes_over(self):
        executor = jitmem.Executor()
        with jitmem.Manager(executor) as manager:
            crash = manager.link((READ_EXEC, samples.TRAP))
            with self.assertRaises(jitmem.Error) as caught:
                executor.run(crash.addresses[0], 1)
            self.assertEqual(caught.exception.status, Status.DISCONNECTED)
        end = executor.close()
        self.assertIn(end.signal, (signal.SIGILL, signal.SIGTRAP))
        self.assertIn(end.signal.name, str(end))
        with jitmem.Executor() as another, jitmem.Manager(another) as manager:
            self.assertEqual(another.run(manager.link((READ_EXEC, samples.TWICE)).addresses[0], 4), 8)

    def test_options_are_the_programs(self):
        with jitmem.Executor(["--seccomp=confined"]) as executor, jitmem.Manager(executor) as manager:
            self.assertEqual(executor.run(manager.link((READ_EXEC, samples.TWICE)).addresses[0], 3), 6)

    def test_what_is_no_executor_is_an_error(self):
        with self.assertRaises(jitmem.Error) as caught:
            jitmem.Executor(program="true")
        self.assertEqual(caught.exception.status, Status.DISCONNECTED)
        with self.assertRaisesRegex(FileNotFoundError, "start an executor: .*: install .*/nowhere/jitmem-executor"):
            jitmem.Executor(program="/nowhere/jitmem-executor")
        with self.assertRaisesRegex(PermissionError, "start an executor: .*: install .*/tmp"):
            jitmem.Executor(program="/tmp")

    def test_a_program_that_is_there_need_not_be_installed(self):
        with self.assertRaisesRegex(OSError, "start an executor: Argument list too long: '") as caught:
            # One word may have 32 pages.
            jitmem.Executor(["--" + "x" * (33 * os.sysconf("SC_PAGESIZE"))])
        self.assertEqual(caught.exception.errno, errno.E2BIG)

    def test_what_is_closed_says_so(self):
        executor = jitmem.Executor()
        executor.close()
        for use in (lambda: jitmem.Manager(executor), lambda: executor.symbol("jitmem_service_open")):
            with self.assertRaisesRegex(jitmem.Error, "the executor is closed"):
                use()

    def test_unknown_names_are_errors(self):
        with jitmem.Executor() as executor:
            with self.assertRaisesRegex(ValueError, "has a NUL"):
                executor.symbol("jitmem_service_open\0or another")
            with self.assertRaisesRegex(OverflowError, "jitmem_transport_call: .* out of range"):
                executor.call((1 << 64) + executor.symbol("jitmem_service_open"))
            for function, argument in (1 << 64, 0), (-1, 0), (0, 1 << 31), (0, -(1 << 31) - 1):
                with self.assertRaisesRegex(OverflowError, "of a function: .* is out of range: pass a number from"):
                    executor.run(function, argument)
            with self.assertRaises(jitmem.Error) as caught:
                executor.call("no_such_wrapper")
            self.assertEqual(caught.exception.status, Status.INVALID_ARGUMENT)


if __name__ == "__main__":
    unittest.main()
