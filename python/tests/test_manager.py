# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
import ctypes
import threading
import unittest
import warnings
from array import array
from pathlib import Path
from unittest import mock

import code_samples as samples
import jitmem
from jitmem import READ, READ_EXEC, READ_WRITE, Segment, Status

BINARY = (ctypes.c_int, ctypes.c_int, ctypes.c_int)


class ManagerTest(unittest.TestCase):
    def setUp(self):
        self.manager = jitmem.Manager()
        self.addCleanup(self.manager.close)

    def assertRefused(self, status, function, *arguments, **keywords):
        with self.assertRaises(jitmem.Error) as caught:
            function(*arguments, **keywords)
        self.assertEqual(caught.exception.status, status, caught.exception)
        return str(caught.exception)

    def test_linked_code_runs_in_each_kind(self):
        for kind in jitmem.InProcess:
            with jitmem.Manager(kind=kind) as manager:
                with manager.link((READ_EXEC, samples.ADD)) as allocation:
                    self.assertEqual(allocation.function(*BINARY)(40, 2), 42, kind)
                self.assertEqual(manager.stats().finalized, 0)

    def test_linked_code_calls_back(self):
        heard = []
        callback = ctypes.CFUNCTYPE(*BINARY)(lambda a, b: heard.append((a, b)) or a * b)
        code = samples.jump_to(ctypes.cast(callback, ctypes.c_void_p).value)
        with self.manager.link((READ_EXEC, code)) as allocation:
            self.assertEqual(allocation.function(*BINARY)(6, 7), 42)
        self.assertEqual(heard, [(6, 7)])

    def test_segments_of_a_graph_are_in_reach_and_zero_fill_is_zero(self):
        with self.manager.allocate([Segment(READ_EXEC, 16), Segment(READ, 8), Segment(READ_WRITE, 4, 4096)]) as graph:
            graph.write(0, 0, samples.ADD)
            graph.write(1, 0, b"constant")
            graph.write(2, 0, b"data")
            allocation = graph.finalize()
        self.assertLess(max(allocation.addresses) - min(allocation.addresses), 1 << 31)
        self.assertEqual(ctypes.string_at(allocation.addresses[1], 8), b"constant")
        self.assertEqual(ctypes.string_at(allocation.addresses[2], 4100), b"data" + bytes(4096))

    def test_a_block_that_is_left_abandons(self):
        with self.assertRaises(ZeroDivisionError), self.manager.allocate([Segment(READ_EXEC, 64)]):
            self.assertEqual(self.manager.stats().in_flight, 1)
            raise ZeroDivisionError
        stats = self.manager.stats()
        self.assertEqual((stats.in_flight, stats.abandon_calls), (0, 1))

    def test_content_is_the_bytes_of_any_buffer(self):
        numbers = array("I", range(16))
        with self.manager.link((READ, numbers)) as allocation:
            self.assertEqual(ctypes.string_at(allocation.addresses[0], 64), numbers.tobytes())
        with self.manager.allocate([Segment(READ, 64)]) as graph:
            graph.write(0, 0, memoryview(numbers))
            allocation = graph.finalize()
        self.assertEqual(ctypes.string_at(allocation.addresses[0], 64), numbers.tobytes())

    def test_what_is_gone_is_no_function(self):
        allocation = self.manager.link((READ_EXEC, samples.ADD))
        allocation.deallocate()
        closed = jitmem.Manager()
        of_closed = closed.link((READ_EXEC, samples.ADD))
        closed.close()
        for gone in allocation, of_closed:
            with self.assertRaises(ValueError):
                gone.function(*BINARY)
        self.assertRefused(Status.INVALID_HANDLE, closed.lookup, 1)
        for use in closed.stats, of_closed.deallocate, lambda: closed.link((READ_EXEC, samples.ADD)):
            with self.assertRaisesRegex(jitmem.Error, "the manager is closed"):
                use()

    def test_what_is_dropped_is_freed_with_a_warning(self):
        with self.assertWarnsRegex(ResourceWarning, "a jitmem.Manager was dropped") as caught:
            (address,) = jitmem.Manager().link((READ_EXEC, samples.ADD)).addresses
        self.assertEqual(Path(caught.filename).name, Path(__file__).name)
        self.assertIsNone(jitmem.lookup(address))

    def test_what_is_closed_is_dropped_without_a_warning(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with jitmem.Manager() as manager:
                manager.link((READ_EXEC, samples.ADD))
            del manager
            with self.assertRaises(jitmem.Error):
                jitmem.Manager(window_size=1)
        self.assertEqual(caught, [])

    def test_a_function_keeps_its_manager(self):
        add = jitmem.Manager().link((READ_EXEC, samples.ADD)).function(*BINARY)
        self.assertEqual(add(40, 2), 42)
        with self.assertWarns(ResourceWarning):
            del add

    def test_a_manager_is_closed_under_other_threads_calls(self):
        for _ in range(20):
            manager = jitmem.Manager()
            begun = threading.Barrier(4)

            def link_until_closed():
                begun.wait()
                with self.assertRaises(jitmem.Error):
                    while True:
                        manager.link((READ_EXEC, samples.ADD))

            threads = [threading.Thread(target=link_until_closed) for _ in range(3)]
            for thread in threads:
                thread.start()
            begun.wait()
            manager.close()
            for thread in threads:
                thread.join()

    def test_ctrl_c_inside_of_a_callback_is_raised(self):
        self.manager.link((READ, b"1"))
        for function, made in (self.manager.walk, "location_of"), (self.manager.layout, "item_of"):
            with mock.patch("jitmem.manager." + made, side_effect=KeyboardInterrupt):
                with self.assertRaises(KeyboardInterrupt):
                    function()

    def test_errors_have_the_librarys_text(self):
        message = self.assertRefused(
            Status.INVALID_ARGUMENT, self.manager.allocate, [Segment(READ_EXEC | READ_WRITE, 4)]
        )
        self.assertIn("writable and executable", message)
        allocation = self.manager.link((READ, b"gone"))
        allocation.deallocate()
        self.assertRefused(Status.INVALID_HANDLE, allocation.deallocate)
        with self.manager.allocate([Segment(READ, 4)]) as graph:
            self.assertRefused(Status.INVALID_ARGUMENT, graph.write, 0, 2, b"far")
        self.manager.set_quota(4096)
        self.assertRefused(Status.QUOTA_EXCEEDED, self.manager.allocate, [Segment(READ, 8192)])
        self.manager.close()
        self.assertRefused(Status.INVALID_HANDLE, self.manager.stats)

    def test_numbers_are_refused_and_not_cut(self):
        with self.manager.allocate([Segment(READ, 8)]) as graph:
            for arguments in (0, 1 << 64, b"far"), (1 << 64, 0, b"far"), (0, -1, b"far"), (-1, 0, b"far"):
                with self.assertRaisesRegex(OverflowError, "jitmem_manager_write: .* out of range"):
                    graph.write(*arguments)
            graph.write(0, 0, b"as it is")
            wrapper = jitmem.WrapperCall((1 << 64) + 1)
            with self.assertRaisesRegex(OverflowError, "WrapperCall.function"):
                graph.finalize([jitmem.Action(finalize=wrapper)])
            allocation = graph.finalize()
        (address,) = allocation.addresses
        self.assertEqual(ctypes.string_at(address, 8), b"as it is")
        for function, arguments in (
            (self.manager.allocate, ([Segment(READ, (1 << 64) + 5)],)),
            (self.manager.set_quota, ((1 << 64) + 4096,)),
            (self.manager.lookup, ((1 << 64) + address,)),
            (jitmem.lookup, ((1 << 64) + address,)),
        ):
            with self.assertRaises(OverflowError):
                function(*arguments)
        for name, number in ("window_size", 1 << 64), ("address", -1), ("quota", (1 << 64) + 4096), ("growth", 1 << 32):
            with self.assertRaisesRegex(OverflowError, f"ManagerOptions.{name}: {number} is out of range"):
                jitmem.Manager(**{name: number})

    def test_names_with_a_nul_are_refused_and_not_cut(self):
        for name in "name", "dylib_name":
            with self.assertRaisesRegex(ValueError, "has a NUL"):
                self.manager.allocate([Segment(READ, 8)], **{name: "a\0b"})

    def test_a_batch_is_deallocated_whole_or_not_at_all(self):
        one, two = (self.manager.link((READ, b"4 bytes or more")) for _ in range(2))
        self.assertRefused(Status.INVALID_HANDLE, self.manager.deallocate, [one, two, one])
        self.assertEqual(self.manager.stats().finalized, 2)
        self.manager.deallocate([one, two])
        self.assertEqual(self.manager.stats().finalized, 0)

    def test_look_ups_walk_and_layout_tell_what_lies_where(self):
        segments = [Segment(READ_EXEC, len(samples.ADD), hint=jitmem.CodeHint.HOT)]
        with self.manager.allocate(segments, tag=7, name="add", dylib=9, dylib_name="main") as graph:
            graph.write(0, 0, samples.ADD)
            allocation = graph.finalize()
        (address,) = allocation.addresses
        location = jitmem.lookup(address + 1)
        self.assertEqual((location.allocation, location.tag, location.dylib), (allocation.handle, 7, 9))
        self.assertEqual((location.address, location.size), (address, len(samples.ADD)))
        self.assertEqual((location.protection, location.phase), (READ_EXEC, jitmem.Phase.FINALIZED))
        self.assertEqual(self.manager.lookup(address), location)
        self.assertEqual(self.manager.walk(), [location])
        self.assertIsNone(jitmem.lookup(1))
        items = self.manager.layout()
        self.assertEqual(items[0].kind, jitmem.LayoutKind.WINDOW)
        (taken,) = [item for item in items if item.kind == jitmem.LayoutKind.RANGE]
        self.assertEqual((taken.address, taken.allocation), (address, allocation.handle))
        self.assertEqual(taken.hint, jitmem.CodeHint.HOT)

    def test_threads_link_at_the_same_time(self):
        failures = []

        def link_many():
            for _ in range(200):
                with self.manager.link((READ_EXEC, samples.ADD)) as allocation:
                    if allocation.function(*BINARY)(40, 2) != 42:
                        failures.append(allocation.handle)

        threads = [threading.Thread(target=link_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(self.manager.stats().deallocate_calls, 800)
        self.assertGreater(self.manager.trim(), 0)


if __name__ == "__main__":
    unittest.main()
