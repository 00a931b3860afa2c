# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Real controllers: how each is started, and what comes of it."""

import ctypes
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import programs

# Memory managers by controller, and what chooses them.
MODES = {
    14: {"generic": []},
    15: {"generic": []},
    16: {"generic": [], "shared": ["-use-shared-memory"]},
    19: {"generic": [], "shared": ["-use-shared-memory"]},
    22: {mode: [f"-use-memmgr={mode}"] for mode in ("generic", "simple-remote", "shared")},
}
REPL_MODES = {"generic": [], "shared": ["-use-shared-memory"]}
SECONDS = 120

# An executor is its controller's child and outlives it: with this, its status comes to us then.
PR_SET_CHILD_SUBREAPER = 36
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl")


@dataclass
class Run:
    """What a controller and its executor made of a program."""

    code: int
    output: str
    complaint: str
    # How the executor itself ended: its exit code, or less a signal.
    status: int
    # Names of shared memory that the executor has left, or other processes whose parents have ended.
    shared_memory: list


def rest(group):
    """Waits for what is left of a group of processes, the executor above all: statuses by process."""
    statuses = {}
    while True:
        try:
            process, status = os.waitpid(-group, 0)
        except ChildProcessError:
            return statuses
        statuses[process] = os.waitstatus_to_exitcode(status)


def run(command, environment=None, text="", merged=False):
    """Runs a controller and waits for its executor as well."""
    before = programs.all_shared_memory()
    process = subprocess.Popen(
        command,
        env=dict(os.environ, **(environment or {})),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        start_new_session=True,
    )
    try:
        # Both processes have these pipes: they end when both have ended.
        output, complaint = process.communicate(text.encode(), timeout=SECONDS)
        statuses = rest(process.pid)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, complaint = process.communicate()
        rest(process.pid)
        raise TimeoutError(f"{command} does not end: {output} {complaint}")
    status = list(statuses.values())[-1] if statuses else None
    # A controller that runs what it has not finished may say anything.
    said = [text.decode(errors="backslashreplace") for text in (output, complaint or b"")]
    return Run(process.returncode, *said, status, programs.shared_memory(statuses, before))


def at_once(function, executors):
    """Calls a function with each executor, and gives what comes of it by executor."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(executors, pool.map(function, executors)))


def jitlink(llvm, mode, executor, words, runtime=False, **options):
    command = [programs.controller(llvm), f"-oop-executor={executor}", *MODES[llvm][mode]]
    if runtime:
        command.append(f"-orc-runtime={programs.orc_runtime(llvm)}")
    # What our executor in C can't find out; the program has to.
    environment = {"EXECUTOR_LLVM": str(llvm), **options.pop("environment", {})}
    if llvm == 19:
        # Its threads race with each other, in the controller itself.
        command = [programs.tool("taskset"), "-c", str(min(os.sched_getaffinity(0))), *command]
    return run([*command, *words], environment, **options)


def repl(mode, executor, text):
    runtime = f"-orc-runtime={programs.orc_runtime(22)}"
    command = [programs.tool(programs.REPL), f"-oop-executor={executor}", runtime]
    return run([*command, *REPL_MODES[mode]], text=text)
