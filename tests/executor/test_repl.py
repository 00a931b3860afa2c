# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""clang-repl compiles line after line, and what it compiles runs in our executor as in the stock one."""

import unittest
from dataclasses import dataclass

import controllers
import programs
from catalogue import RUNTIME


@dataclass
class Lines:
    """What is typed, and what comes of it."""

    text: str
    output: str
    code: int = 0
    status: int = 0
    complaint: str = ""
    signal: str = ""


PRINTF = 'extern "C" int printf(const char *, ...);\n'
SESSIONS = {
    "arguments": Lines(
        PRINTF + "int twice(int x) { return 2 * x; }\n"
        'printf("%d %s %.1f\\n", twice(21), "text", 0.5);\n',
        "42 text 0.5\n",
    ),
    "stdio": Lines(
        "#include <iostream>\n"
        'std::cout << "out" << std::endl; std::cerr << "err" << std::endl;\n',
        "out\n",
        complaint="err\n",
    ),
    "exceptions": Lines(
        "#include <cstdio>\n#include <stdexcept>\n"
        'int refuse() { throw std::out_of_range("refused"); }\n'
        'try { refuse(); } catch (const std::exception &error) { std::puts(error.what()); }\n',
        "refused\n",
    ),
    "constructors": Lines(
        PRINTF + 'struct Said { int n; Said(int n) : n(n) { printf("+%d ", n); } '
        '~Said() { printf("-%d ", n); } };\n'
        "Said first(1);\nSaid second(2);\n",
        "+1 +2 -2 -1 ",
    ),
    "thread-locals": Lines(
        "#include <cstdio>\n#include <thread>\nthread_local int own = 20;\nint other = 0;\n"
        "std::thread thread([] { other = ++own; }); thread.join();\n"
        'std::printf("%d\\n", own + other + 1);\n',
        "42\n",
    ),
    "threads": Lines(
        "#include <atomic>\n#include <cstdio>\n#include <thread>\n#include <vector>\n"
        "std::atomic<int> sum;\nint add() { std::vector<std::thread> threads; "
        "for (int i = 0; i < 7; i++) threads.emplace_back([i] { sum += 2 * i; }); "
        "for (auto &thread : threads) thread.join(); return sum; }\n"
        'std::printf("%d\\n", add());\n',
        "42\n",
    ),
    "zero-fill": Lines(
        PRINTF + "char zeros[64 << 20];\nzeros[sizeof zeros - 1] = 42;\n"
        'printf("%d\\n", zeros[sizeof zeros - 1] + zeros[0] + zeros[32 << 20]);\n',
        "42\n",
    ),
    "objects": Lines(
        PRINTF + "int f0() { return 0; }\n"
        + "".join(f"int f{i}() {{ return f{i - 1}() + 1; }}\n" for i in range(1, 151))
        + 'printf("%d\\n", f150());\n',
        "150\n",
    ),
    "overridden": Lines(
        PRINTF + "int answer = 1;\n%undo\nint answer = 42;\n" + 'printf("%d\\n", answer);\n',
        "42\n",
    ),
    "library": Lines(
        PRINTF + f"%lib {programs.objects('liblibrary.so')[0]}\n"
        'extern "C" int thrice(int);\nprintf("%d\\n", thrice(14));\n',
        "loaded\n42\nleft\n",
    ),
    "exit": Lines(
        "#include <cstdio>\n#include <cstdlib>\n"
        'std::printf("before ");\nstd::exit(7);\nstd::printf("after ");\n',
        "before ",
        -6,
        7,
        "disconnecting",
    ),
    "abort": Lines(
        "#include <cstdio>\n#include <cstdlib>\n" 'std::printf("lost ");\nstd::abort();\n',
        "",
        -6,
        -6,
        "disconnecting",
        "SIGABRT",
    ),
    "segfault": Lines(
        "int *volatile nowhere = (int *)16;\n*nowhere = 1;\n", "", -6, -11, "disconnecting", "SIGSEGV"
    ),
    "uncaught": Lines(
        '#include <stdexcept>\nthrow std::runtime_error("not caught");\n',
        "",
        -6,
        -6,
        "what():  not caught",
        "SIGABRT",
    ),
}


class Repl(unittest.TestCase):
    """One test for each memory manager and session; made below."""

    maxDiff = None

    def check(self, mode, lines):
        executors = [programs.PROGRAM, programs.stock_executor(22)]
        text = lines.text + "%quit\n"
        runs = controllers.at_once(lambda one: controllers.repl(mode, one, text), executors)
        for executor, ran in runs.items():
            with self.subTest(executor=executor):
                self.assertEqual((ran.code, ran.status), (lines.code, lines.status), ran)
                # The controller ends with a line's end, while the executor may still write.
                ends = ("\n", "") if lines.code == 0 else ("", "")
                self.assertIn(ran.output, (lines.output + ends[0], ends[0] + lines.output), ran)
                self.assertIn(lines.complaint, ran.complaint)
                self.assertEqual(ran.shared_memory, [])
                if executor == programs.PROGRAM:
                    crash = f"killed by signal {-lines.status} ({lines.signal})"
                    self.assertEqual("killed by" in ran.complaint, bool(lines.signal), ran)
                    self.assertTrue(not lines.signal or crash in ran.complaint, ran)


def add(mode, name, lines):
    def test(self):
        self.check(mode, lines)

    test.__doc__ = f"clang-repl, {mode}: {name}"
    test.cell = ("repl", mode, RUNTIME, name)
    setattr(Repl, f"test_{mode}_{name}".replace("-", "_"), test)


for mode in controllers.REPL_MODES:
    for name, lines in SESSIONS.items():
        add(mode, name, lines)


if __name__ == "__main__":
    unittest.main()
