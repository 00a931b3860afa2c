# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Where run.sh has put things, and what is installed."""

import os
import shutil

WORK = os.environ.get("EXECUTOR_TEST_WORK") or exit("start the tests by run.sh")
EXECUTORS = {
    "shared library": os.path.join(WORK, "executor"),
    "archive": os.path.join(WORK, "executor-static"),
}
LLVM = (14, 16, 19, 22)


def controller(llvm):
    """The llvm-jitlink of a version; None if it is not installed."""
    return shutil.which(f"llvm-jitlink-{llvm}")


def stock_executor(llvm):
    return shutil.which(f"llvm-jitlink-executor-{llvm}")


def orc_runtime(llvm):
    path = f"/usr/lib/llvm-{llvm}/lib/clang/{llvm}/lib/linux/liborc_rt-x86_64.a"
    return path if os.path.exists(path) else None


def objects(*names):
    return [os.path.join(WORK, "objects", name) for name in names]


def shared_memory():
    """Names under which memory is shared at the moment."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("jitmem-", "jitlink_"))}
