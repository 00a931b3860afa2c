# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Runs the tests, and prints which controllers have run which programs."""

import sys
import unittest

from table import Table

TABLE = Table()


class Result(unittest.TextTestResult):
    """Also notes what became of a controller's program."""

    def note(self, test, outcome):
        cell = getattr(getattr(test, test._testMethodName, None), "cell", None)
        if cell:
            TABLE.note(cell, outcome)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "passed")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, "failed")

    def addError(self, test, err):
        super().addError(test, err)
        # Not where setting up a class or module has failed.
        if isinstance(test, unittest.TestCase):
            self.note(test, "failed")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.note(test, "failed")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, reason)


class Runner(unittest.TextTestRunner):
    resultclass = Result


if __name__ == "__main__":
    words = sys.argv[1:]
    ran = unittest.main(
        module=None,
        argv=[sys.argv[0], *(words or ["discover"])],
        testRunner=Runner,
        verbosity=2 if words else 1,
        warnings="error",
        exit=False,
    )
    print(TABLE.text(), flush=True)
    sys.exit(not ran.result.wasSuccessful())
