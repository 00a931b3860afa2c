# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The programs that controllers link, what comes of each, and what a controller can't do."""

from dataclasses import dataclass, field

import programs

BARE, RUNTIME = "without the ORC runtime", "with the ORC runtime"
BOTH = (BARE, RUNTIME)


@dataclass
class Program:
    """What is linked, and what comes of it."""

    files: list
    code: int
    output: str = ""
    args: list = field(default_factory=list)
    # What controllers are given beside objects.
    options: list = field(default_factory=list)
    text: str = ""
    # Words that are on stderr.
    complaint: str = ""
    # How it has the executor end: with an exit code, or by a signal.
    status: int = 0
    # The signal that our executor says it was killed by.
    signal: str = ""
    linked: tuple = BOTH
    llvm: tuple = programs.LLVM
    # Whether the stock executor runs it as well, every time.
    stock: bool = True
    # Releases whose controller may close its descriptors, once the program has ended, while a thread
    # of its own still reads a message; then it exits with 1.
    torn: tuple = ()

    def codes(self, llvm):
        """The exit codes that a controller of that release may have."""
        return {self.code, 1} if llvm in self.torn else {self.code}


def ends(way, status=0, signal="", output="", complaint=""):
    """`ends.cpp`: the controller finds that the executor is gone."""
    complaint = complaint or "disconnecting"
    return Program(["ends.o"], 1, output, [way], complaint=complaint, status=status, signal=signal)


PARTS = [f"part-{number}.o" for number in range(150)]
LIBRARIES = programs.objects("")[0]
LIBRARY = LIBRARIES + "liblibrary.so"
THROWN = "negative: -7, 68\n"
NOT_CAUGHT = "what():  not caught"
PROGRAMS = {
    "arguments": Program(["arguments.o"], 42, "<*ne><*wo three> 1\n", ["one", "two three"]),
    "no-arguments": Program(["arguments.o"], 40, " 1\n", linked=(BARE,)),
    "negative-result": Program(["negative.o"], 253),
    "stdio": Program(
        ["stdio.o"], 2, "1: one\n2: two\n", text="one\ntwo\n", complaint="2 lines\n"
    ),
    "exceptions": Program(["catches.o", "throws.o"], 68, THROWN),
    "debug-info": Program(["catches-debug.o", "throws-debug.o"], 68, THROWN),
    "classes": Program(["shapes.o", "makes.o"], 41, "9 12 1 1\n"),
    "lazy": Program(
        ["shapes.o"],
        41,
        "9 12 1 1\n",
        options=["-lazy", LIBRARIES + "makes.o"],
        linked=(RUNTIME,),
        llvm=(22,),
    ),
    "streams": Program(
        ["streams.o"], 42, "a=2 b=1 \n", text="a b a", complaint="2 words\n", linked=(RUNTIME,)
    ),
    # LLVM's runtime runs no handlers of atexit, and no destructors that are C functions.
    "constructors": Program(
        ["order.o"],
        42,
        "constructor +first +second +third +local main -local -third -second -first ",
        linked=(RUNTIME,),
    ),
    # The stock executor answers before main's thread-locals end, and their code goes meanwhile.
    "thread-locals": Program(
        ["lifetimes.o"],
        42,
        "+global +main's +thread's -thread's main -global -main's ",
        linked=(RUNTIME,),
        stock=False,
        torn=(19,),
    ),
    "exit-handlers": Program(["handlers.o"], 42, "main first\nthen\nlast\n", linked=(BARE,)),
    "threads": Program(["threads.o"], 42, "16000 rounds, 16 kept, 120 destroyed\n"),
    "deep-stack": Program(["deep.o"], 42, "1700 1700\n"),
    "signals": Program(["signals.o"], 42, "1\n1\n"),
    "children": Program(["forks.o"], 42, "child 5 9 command\n6\n"),
    "zero-fill": Program(["zeros.o"], 42),
    "weak": Program(["weak.o"], 42),
    "overridden": Program(["overrides.o", "strong.o"], 42),
    "missing": Program(["missing.o"], 1, complaint="nowhere_at_all", linked=(BARE,)),
    # LLVM 19 may end in the middle of a message here.
    "missing-with-runtime": Program(
        ["missing.o"], 1, complaint="nowhere_at_all", linked=(RUNTIME,), llvm=(22,)
    ),
    "objects": Program(["parts.o", *PARTS], 150),
    "archive": Program(["parts.o", "libparts.a"], 150),
    "library": Program(
        ["uses-library.o"], 42, "loaded\n42 1\nleft\n", options=["-L", LIBRARIES, "-llibrary"]
    ),
    "preloaded": Program(
        ["uses-library.o"], 42, "loaded\n42 1\nleft\n", options=[f"-preload={LIBRARY}"]
    ),
    "dlopen": Program(["opens.o"], 42, "loaded\n42\nleft\n", [LIBRARY]),
    "exit": Program(["exits.o"], 1, "first last 7\n", complaint="disconnecting", status=7),
    "_exit": ends("_exit", 3),
    "quick_exit": ends("quick_exit", 4, complaint="quick\n"),
    "abort": ends("abort", -6, "SIGABRT"),
    "segfault": ends("segfault", -11, "SIGSEGV"),
    "thread-segfault": ends("segfault in a thread", -11, "SIGSEGV"),
    "stack-overflow": ends("overflow", -11, "SIGSEGV"),
    "division": ends("divide", -8, "SIGFPE"),
    "trap": ends("trap", -4, "SIGILL"),
    "killed": ends("kill", -9),
    "terminated": ends("terminate", -15),
    "uncaught": ends("throw", -6, "SIGABRT", complaint=NOT_CAUGHT),
    "thread-uncaught": ends("throw in a thread", -6, "SIGABRT", complaint=NOT_CAUGHT),
}

# What a controller can't do with any executor: by version, memory manager, linkage and program, where
# None is any. The stock executor of the same version shows each, every time the tests run.
DEFECTS = {
    (19, None, None, "archive"): "LLVM 19 calls main before all objects are finalized",
    (19, "shared", RUNTIME, None): "LLVM 19 calls the runtime before it is finalized",
    (19, None, RUNTIME, "exceptions"): "LLVM 19 registers no eh-frames where there is a runtime",
    (19, None, RUNTIME, "debug-info"): "LLVM 19 registers no eh-frames where there is a runtime",
}
NOTES = [
    "LLVM 19: several objects are merged by ld first, for it calls main before all are finalized; and it",
    "         has one CPU, for its threads race with each other where there is a runtime. There it may end",
    "         in the middle of a message where a symbol is missing, so that is left out; and where there",
    "         are thread-locals, with whatever executor, so that its exit code may be 1 there. At the end one",
    "         thread may read a descriptor that another has closed: an exit code of 1 that says so is right",
    "LLVM 14, 15, 16: Debian has no ORC runtime",
    "clang-repl 22: it hangs now and then where a symbol is missing, with the stock executor as well,",
    "         for its debug object plugin waits for an answer under the lock that the answer needs",
]


def defect(*cell):
    """What keeps a program from running, as a key of `DEFECTS`."""
    fits = (key for key in DEFECTS if all(part in (None, own) for part, own in zip(key, cell)))
    # That a whole column can't be counts before what a single program lacks.
    return max(fits, key=lambda key: key[3] is None, default=None)
