#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A Python host over ctypes with multiprocessing's fork: workers run what was linked before them, and link
and unlink themselves, while threads of their parent do the same.

usage: multiprocessing_test.py libjitmem.so
"""

import ctypes
import multiprocessing
import struct
import sys
import threading
import unittest
from ctypes import POINTER, Structure, byref, c_char_p, c_size_t, c_uint32, c_uint64, c_void_p

TWO_VIEWS = 1
READ_EXECUTE = 1 | 4
FUNCTIONS, WORKERS, TASKS = 50, 8, 400


class Segment(Structure):
    _fields_ = [
        ("content_size", c_uint64),
        ("zero_fill_size", c_uint64),
        ("alignment", c_uint64),
        ("protection", c_uint32),
        ("lifetime", c_uint32),
        ("reserved", c_uint64 * 2),
    ]


class SegmentMemory(Structure):
    _fields_ = [("address", c_uint64), ("working_memory", c_void_p)]


class Jitmem:
    """A manager with two views. Its methods raise what the library reports."""

    def __init__(self, path):
        library = ctypes.CDLL(path)
        self.library = library
        library.jitmem_error_message.restype = c_char_p
        library.jitmem_error_message.argtypes = [c_void_p]
        self.mapper, self.manager = c_void_p(), c_void_p()
        self.call("jitmem_mapper_in_process", c_uint32(TWO_VIEWS), byref(self.mapper))
        self.call("jitmem_manager_create", self.mapper, None, byref(self.manager))

    def call(self, name, *arguments):
        error = c_void_p()
        if getattr(self.library, name)(*arguments, byref(error)) != 0:
            raise RuntimeError(f"{name}: {self.library.jitmem_error_message(error).decode()}")

    def link(self, value):
        """A function that returns `value`, with its handle."""
        segment = Segment(16, 0, 16, READ_EXECUTE, 0)
        memory, handle = SegmentMemory(), c_uint64()
        self.call("jitmem_manager_allocate", self.manager, byref(segment), c_size_t(1),
                  c_uint64(0), byref(memory), byref(handle))
        code = b"\xb8" + struct.pack("<I", value) + b"\xc3"  # mov eax, value; ret
        ctypes.memmove(memory.working_memory, code, len(code))
        self.call("jitmem_manager_finalize", self.manager, handle, None, c_size_t(0))
        return ctypes.CFUNCTYPE(c_uint32)(memory.address), handle

    def unlink(self, handle):
        self.call("jitmem_manager_deallocate", self.manager, byref(handle), c_size_t(1))


jitmem = None
linked = []


def run_own(number):
    own, handle = jitmem.link(number)
    answer = own()
    jitmem.unlink(handle)
    return answer


def run_inherited_and_own(number):
    return sum(function() for function, _ in linked) + run_own(number)


def unlink_inherited_and_run_own(number):
    for _, handle in linked:
        jitmem.unlink(handle)
    return run_own(number)


class MultiprocessingTest(unittest.TestCase):
    def setUp(self):
        linked[:] = [jitmem.link(value) for value in range(FUNCTIONS)]
        self.stop = threading.Event()
        self.linkers = [threading.Thread(target=self.keep_linking) for _ in range(2)]
        self.failures = []
        for linker in self.linkers:
            linker.start()

    def keep_linking(self):
        try:
            number = 0
            while not self.stop.is_set():
                function, handle = jitmem.link(number)
                if function() != number:
                    self.failures.append(number)
                jitmem.unlink(handle)
                number += 1
        except RuntimeError as error:
            self.failures.append(str(error))

    def tearDown(self):
        self.stop.set()
        for linker in self.linkers:
            linker.join()
        self.assertEqual(self.failures, [])
        for value, (function, handle) in enumerate(linked):
            self.assertEqual(function(), value)
            jitmem.unlink(handle)

    def test_a_pool_runs_and_links(self):
        inherited = sum(range(FUNCTIONS))
        # A worker ends after a few tasks, so others are forked while all of this goes on.
        with multiprocessing.get_context("fork").Pool(WORKERS, maxtasksperchild=10) as pool:
            answers = pool.map(run_inherited_and_own, range(TASKS), chunksize=1)
        self.assertEqual(answers, [inherited + number for number in range(TASKS)])

    def test_workers_keep_what_their_parent_unlinks(self):
        inherited = sum(range(FUNCTIONS))
        with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
            pool.map(run_inherited_and_own, range(WORKERS), chunksize=1)
            # All workers are there. The parent replaces what they were forked with.
            for index, (_, handle) in enumerate(linked):
                jitmem.unlink(handle)
                linked[index] = jitmem.link(index)
            answers = pool.map(run_inherited_and_own, range(TASKS), chunksize=1)
        self.assertEqual(answers, [inherited + number for number in range(TASKS)])

    def test_workers_may_unlink_what_they_inherit(self):
        context = multiprocessing.get_context("fork")
        for number in range(20):
            with context.Pool(1) as pool:
                self.assertEqual(pool.apply(unlink_inherited_and_run_own, (number,)), number)


if __name__ == "__main__":
    jitmem = Jitmem(sys.argv.pop(1))
    unittest.main(verbosity=2)
