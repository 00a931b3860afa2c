# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""LLVM's interpreter and JIT, lli, with our executor as the process in which MCJIT's code runs."""

import os
import subprocess
import tempfile
import unittest

import programs
from controllers import run

# What runs it says so; a constructor and zero-fill are there as well.
SOURCE = """
extern "C" int printf(const char *, ...);
extern "C" long readlink(const char *, char *, unsigned long);
static int zeros[5000];
static const char *constructed = "not constructed";
struct Early { Early() { constructed = "constructed"; } } early;
int main() {
  int count = 42;
  char path[4096] = {};
  readlink("/proc/self/exe", path, sizeof path - 1);
  for (int zero : zeros) count += zero;
  printf("%s %d %s\\n", path, count, constructed);
  return 7;
}
"""
STOCK = "/usr/lib/llvm-22/bin/lli-child-target"


class Lli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.program = os.path.join(folder.name, "program.ll")
        compiler = [programs.tool("clang++-22"), "-O1", "-S", "-emit-llvm", "-x", "c++", "-"]
        subprocess.run([*compiler, "-o", cls.program], input=SOURCE.encode(), check=True)

    def lli(self, *options):
        return run([programs.tool("lli-22"), *options, self.program])

    def test_mcjit_in_our_executor(self):
        for executor in (programs.PROGRAM, STOCK):
            with self.subTest(executor=executor):
                ran = self.lli("--jit-kind=mcjit", "-remote-mcjit", f"-mcjit-remote-process={executor}")
                expected = f"{executor} 42 constructed\n"
                self.assertEqual((ran.output, ran.code), (expected, 7), ran)
                self.assertEqual(ran.status, 0)

    def test_orc_runs_in_its_own_process_whatever_it_is_told(self):
        for options in (["--jit-kind=orc"], []):
            with self.subTest(options=options):
                ran = self.lli(*options, "-remote-mcjit", f"-mcjit-remote-process={programs.PROGRAM}")
                self.assertIn("/bin/lli 42 constructed\n", ran.output)
                self.assertEqual((ran.code, ran.status), (7, None), ran)


if __name__ == "__main__":
    unittest.main()
