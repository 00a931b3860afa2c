# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Where run.sh has put things, and what is installed."""

import os
import re
import shutil
import subprocess

WORK = os.environ.get("EXECUTOR_TEST_WORK") or exit("start the tests by run.sh")
# The program that is installed, and the same as a library in a program in C.
PROGRAM = os.path.join(os.environ["EXECUTOR_TEST_PREFIX"], "bin", "jitmem-executor")
HOSTS = {
    "shared library": os.path.join(WORK, "executor"),
    "archive": os.path.join(WORK, "executor-static"),
}
LLVM = (14, 15, 16, 19, 22)
REPL = "clang-repl-22"


def tool(name):
    """A program of Debian's packages, all of which the tests need."""
    return shutil.which(name) or exit(f"{name} is not installed: .ci/setup installs it")


def controller(llvm):
    return tool(f"llvm-jitlink-{llvm}")


def stock_executor(llvm):
    return tool(f"llvm-jitlink-executor-{llvm}")


def orc_runtime(llvm):
    """Its archive; None where Debian has none for this version."""
    path = f"/usr/lib/llvm-{llvm}/lib/clang/{llvm}/lib/linux/liborc_rt-x86_64.a"
    return path if os.path.exists(path) else None


def objects(*names):
    return [os.path.join(WORK, "objects", name) for name in names]


def shared_object(folder, name, text, *words):
    """Builds a shared library of C source and gives its path."""
    path = os.path.join(folder, name)
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path, *words]
    subprocess.run(command, input=text.encode(), check=True)
    return path


def all_shared_memory():
    """Every name of shared memory."""
    return set(os.listdir("/dev/shm"))


def shared_memory(processes, before=frozenset()):
    """Names that processes have given to shared memory, and that are still there. What was there before
    them is of others that had their numbers."""
    names = all_shared_memory() - before
    owners = {name: re.match(r"(?:jitmem-|jitlink_)(\d+)[-_]", name) for name in names}
    return [name for name, owner in owners.items() if owner and int(owner[1]) in processes]
