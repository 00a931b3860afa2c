# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
import signal
import unittest

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
        with self.assertRaises(FileNotFoundError):
            jitmem.Executor(program="/nowhere/jitmem-executor")

    def test_unknown_names_are_errors(self):
        with jitmem.Executor() as executor:
            with self.assertRaises(jitmem.Error) as caught:
                executor.call("no_such_wrapper")
            self.assertEqual(caught.exception.status, Status.INVALID_ARGUMENT)


if __name__ == "__main__":
    unittest.main()
