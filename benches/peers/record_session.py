# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Records what a program that runs on jitmem's preload library asks of it. gdb runs it for record.py, with
RECORD_TO=FILE. Calls that are answered later are left out; in process that is the first one at most.
"""

import os
import struct

import gdb

# Two uint64_t of content and zero-fill, one of alignment, protection, lifetime, two reserved.
SEGMENT = struct.Struct("<QQQIIQQ")
READ, WRITE, EXECUTE = 1, 2, 4


def register(name):
    return int(gdb.parse_and_eval(f"(unsigned long)${name}"))


def memory(address, size):
    return gdb.selected_inferior().read_memory(address, size).tobytes()


def plan(segments, count):
    """Bytes of code, constants and data."""
    sizes = [0, 0, 0]
    for content, zero_fill, _, protection, *_ in SEGMENT.iter_unpack(
        memory(segments, count * SEGMENT.size)
    ):
        kind = 0 if protection & EXECUTE else 2 if protection & WRITE else 1
        sizes[kind] += content + zero_fill
    return sizes


class Trace:
    def __init__(self, path):
        self.numbers = {}
        self.made = 0
        self.file = open(path, "w")

    def add(self, handle, sizes):
        self.numbers[handle] = self.made
        self.made += 1
        print("+", *sizes, file=self.file)

    def remove(self, handle):
        if handle in self.numbers:
            print("-", self.numbers.pop(handle), file=self.file)


class Allocated(gdb.FinishBreakpoint):
    """The end of a call that allocates, which has written the handle."""

    def __init__(self, sizes, handle):
        super().__init__(gdb.newest_frame(), internal=True)
        self.sizes, self.handle = sizes, handle

    def stop(self):
        (handle,) = struct.unpack("<Q", memory(self.handle, 8))
        if handle:
            TRACE.add(handle, self.sizes)
        return False


class Allocate(gdb.Breakpoint):
    """jitmem_manager_try_allocate(manager, segments, count, dylib, memory, allocation, error)"""

    def stop(self):
        Allocated(plan(register("rsi"), register("rdx")), register("r9"))
        return False


class Deallocate(gdb.Breakpoint):
    """jitmem_manager_try_deallocate(manager, allocations, count, error)"""

    def stop(self):
        count = register("rdx")
        for (handle,) in struct.iter_unpack("<Q", memory(register("rsi"), 8 * count)):
            TRACE.remove(handle)
        return False


TRACE = Trace(os.environ["RECORD_TO"])
gdb.execute("set breakpoint pending on")
gdb.execute("set pagination off")
Allocate("jitmem_manager_try_allocate")
Deallocate("jitmem_manager_try_deallocate")
print("record_session: ready", flush=True)
gdb.execute("continue" if gdb.selected_inferior().pid else "run")
TRACE.file.close()
