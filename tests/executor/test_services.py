# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What the services do that the stock executor does not, or not so well."""

import os
import signal
import struct
import unittest

import programs
from sessions import (
    DYLIBS, EXECUTOR, MANAGER, MAPPER, MEMORY, NOTHING, READ, RUN, R, RW, RX, Case, initialize, putting,
    reserve, resolve, start,
)
from wire import Ended, Failed, Session, call, pair, sequence, string, u8, u32, u64


class Memory(Case):
    def test_bad_addresses_and_arguments_are_survived(self):
        with start() as session:
            for name in ("read_uint64s", "read_strings", "read_pointers"):
                function = f"{MEMORY}_{name}_wrapper"
                for address in (0, 8, 1 << 47, (1 << 64) - 4):
                    self.assertEqual(session.call(function, sequence([u64(address)])), b"")
                self.assertEqual(session.call(function, u64(1 << 61)), b"")
            code = session.symbols[READ]
            write = sequence([u64(code) + u64(0)])
            self.assertEqual(session.call(MEMORY + "_write_uint64s_wrapper", write), b"")
            self.assertEqual(session.call(READ, b"trunc"), b"")
            self.assertEqual(session.call(0), b"")
            # Reading code is fine, and it is what it was.
            first = session.ask(READ, sequence([u64(code)]))
            self.assertNotEqual(first.sequence(first.u8), [0])
            self.assertEnds(session, 0)

    def test_sizes_that_nobody_has(self):
        with start() as session:
            for size in (1 << 62, (1 << 64) - 1):
                with self.assertRaisesRegex(Failed, f"reserve {size} bytes"):
                    reserve(session, size)
                instance = u64(session.symbols[MAPPER + "_Instance"])
                answer = session.ask(MAPPER + "_Reserve", instance + u64(size))
                with self.assertRaisesRegex(Failed, f"reserve {size} bytes"):
                    answer.expected(answer.u64)
                self.assertEqual(programs.shared_memory([session.process.pid]), [])
            self.assertEnds(session, 0)

    def test_segments_that_are_elsewhere_or_too_large(self):
        with start() as session:
            base = reserve(session, 1 << 16)
            inside = (RW, base, 8, b"data")
            for segment in (
                (RW, base + (1 << 16), 8, b""),
                (RW, base - 4096, 8, b""),
                (RW, base, (1 << 16) + 1, b""),
                (RW, base, (1 << 64) - 4096, b""),
                (RW, (1 << 64) - 4096, 8192, b""),
                (RW, 0, 8, b"12345678"),
                (RW, base + 4096, 4, b"12345"),
            ):
                with self.assertRaises(Failed, msg=segment):
                    initialize(session, [inside, segment])
            # Nothing of it has stayed.
            self.assertEqual(initialize(session, [inside]), base)
            self.assertEnds(session, 0)

    def test_an_action_that_only_frees(self):
        """The stock executor calls address 0."""
        with start() as session:
            base = reserve(session, 8)
            undo = pair(dealloc=call(putting(session), b"undone\0"))
            initialize(session, [(RW, base, 8, b"data")], [undo])
            code, out, _ = session.finish()
            self.assertEqual((code, out), (0, "undone\n"))

    def test_a_region_is_initialized_again_at_the_same_addresses(self):
        with start() as session:
            base = reserve(session, 1 << 30)
            instance = u64(session.symbols[MANAGER + "_Instance"])
            for value in (42, 43, 44):
                code = b"\xb8" + u32(value) + b"\xc3"  # mov eax, value; ret
                key = initialize(session, [(RX, base, 0x1B88, code), (R, base + 8192, 8, b"const")])
                self.assertEqual(key, base)
                answer = session.call(RUN + "_void_function_wrapper", u64(base))
                self.assertEqual(answer, u32(value))
                gone = session.ask(MANAGER + "_deinitialize_wrapper", instance + sequence([u64(key)]))
                self.assertIsNone(gone.error())
            self.assertEnds(session, 0)

    def test_what_is_left_at_the_end_is_undone_last_to_first(self):
        with start() as session:
            put = putting(session)

            def said(word):
                return pair(dealloc=call(put, word.encode() + b"\0"))

            for index in (1, 2):
                base = reserve(session, 1)
                actions = [said(f"{index}a"), pair(), said(f"{index}b")]
                initialize(session, [(RW, base, 8, b"data")], actions)
            code, out, _ = session.finish()
            self.assertEqual((code, out), (0, "2b\n2a\n1b\n1a\n"))

    def test_shared_memory_that_is_never_opened_leaves_no_name(self):
        with start() as session:
            instance = u64(session.symbols[MAPPER + "_Instance"])
            answer = session.ask(MAPPER + "_Reserve", instance + u64(1 << 30))
            _, name = answer.expected(lambda: (answer.u64(), answer.string()))
            self.assertEqual(programs.shared_memory([session.process.pid]), [name[1:]])
            self.assertEnds(session, 0)
            self.assertEqual(programs.shared_memory([session.process.pid]), [])


class Arguments(Case):
    def test_whatever_is_malformed_is_answered_without_bytes(self):
        for llvm in (16, 22):
            with start(llvm) as session:
                services = [
                    name
                    for name in session.symbols
                    if not name.lower().endswith(("_instance", "_dispatch_ctx", "_dispatch_fn"))
                ]
                self.assertGreater(len(services), 30)
                for name in services:
                    # What runs programs runs whatever is complete; others say what is senseless.
                    short = [b"", b"\xff" * 7]
                    runs = name.startswith((RUN, "orc_rt_ci_sps_call_"))
                    longer = [] if runs else [b"\xff" * 8, b"\xff" * 23]
                    for args in short + longer:
                        self.assertIn(session.call(name, args)[:1], (b"", b"\0", b"\1"), name)
                self.assertEqual(session.call(READ, u64(1)), b"")
                self.assertEnds(session, 0)

    def test_what_comes_behind_arguments_is_ignored(self):
        with start() as session:
            self.assertEqual(session.call(READ, NOTHING + b"more"), NOTHING)
            self.assertEnds(session, 0)

    def test_instances_and_handles_that_are_none(self):
        with start() as session:
            for name, args in (
                (MANAGER + "_reserve_wrapper", u64(1)),
                (MANAGER + "_initialize_wrapper", NOTHING + NOTHING),
                (MAPPER + "_Reserve", u64(1)),
                (DYLIBS + "_open_wrapper", string("") + u64(0)),
                (DYLIBS + "_resolve_wrapper", NOTHING),
            ):
                for instance in (0, session.symbols[READ], (1 << 64) - 1):
                    answer = session.ask(name, u64(instance) + args)
                    with self.assertRaisesRegex(Failed, "no [a-z -]* has the number 0x"):
                        answer.expected(answer.u64)
            self.assertEnds(session, 0)

    def test_a_required_symbol_without_name(self):
        """The stock executor of 22 aborts."""
        with start() as session:
            resolve(session, "getpid")
            request = u64(session.libraries[""]) + sequence([string("") + u8(1)])
            answer = session.ask(DYLIBS + "_resolve_wrapper", request)
            with self.assertRaisesRegex(Failed, '^Required address for empty symbol ""$'):
                answer.expected(answer.u64)
            self.assertEnds(session, 0)


class Process(Case):
    def test_the_hosts_own_symbols_are_published(self):
        for executor in programs.HOSTS.values():
            with self.subTest(executor=executor), Session([executor]) as session:
                answer = session.symbols["executor_answer"]
                self.assertEqual(session.call(RUN + "_void_function_wrapper", u64(answer)), u32(42))
                self.assertEnds(session, 0)

    def test_the_cxx_runtime_is_loaded_when_it_is_looked_for(self):
        def loaded(session):
            with open(f"/proc/{session.process.pid}/maps") as maps:
                return "libstdc++" in maps.read()

        with start() as session:
            self.assertIsNotNone(resolve(session, "malloc"))
            self.assertFalse(loaded(session))
            self.assertIsNotNone(resolve(session, "__cxa_throw"))
            self.assertTrue(loaded(session))
            self.assertEnds(session, 0)
        with Session([EXECUTOR, "--preload-cxx"]) as session:
            self.assertTrue(loaded(session))
            self.assertEnds(session, 0)
        host = programs.HOSTS["shared library"]
        for command, environment in (
            ([EXECUTOR, "--c-only"], {}),
            ([host], {"EXECUTOR_C_ONLY": "1"}),
        ):
            with Session(command, environment=environment) as session:
                self.assertIsNone(resolve(session, "__cxa_throw"))
                self.assertFalse(loaded(session))
                self.assertEnds(session, 0)

    def test_debug_objects_are_where_a_debugger_looks(self):
        with start() as session:
            descriptor = resolve(session, "__jit_debug_descriptor")
            self.assertIsNotNone(resolve(session, "__jit_debug_register_code"))
            base = reserve(session, 4096)
            objects = [(base, base + 16), (base + 16, base + 48)]
            for index, (first, last) in enumerate(objects):
                args = u64(first) + u64(last) + (u8(index) if index else b"")
                function = "llvm_orc_registerJITLoaderGDBWrapper"
                self.assertIsNone(session.ask(function, args).error())

            def read(*addresses):
                request = sequence(map(u64, addresses))
                answer = session.ask(MEMORY + "_read_uint64s_wrapper", request)
                return answer.sequence(answer.u64)

            version, relevant = read(descriptor, descriptor + 8)
            self.assertEqual((version, read(relevant + 16)[0]), (1 | 1 << 32, objects[1][0]))
            found = []
            previous = 0
            entry = read(descriptor + 16)[0]
            while entry:
                following, back, first, size = read(entry, entry + 8, entry + 16, entry + 24)
                self.assertEqual(back, previous)
                found.append((first, first + size))
                previous, entry = entry, following
            self.assertEqual(found[1:-1], objects[::-1])
            # At both ends is an object file with nothing in it.
            for first, last in (found[0], found[-1]):
                header = struct.pack("<Q", read(first)[0])
                self.assertEqual((last - first, header[:5]), (64, b"\x7fELF\x02"))
            self.assertEnds(session, 0)

    def test_frames_that_were_never_registered_are_an_error(self):
        with start() as session:
            base = reserve(session, 4096)
            name = "__llvm_orc_bootstrap_{}_ehframe_section_wrapper"
            args = u64(base) + u64(base + 64)
            # No frames are in it.
            self.assertIsNone(session.ask(name.format("register"), args).error())
            frames = u32(12) + u32(0) + bytes(8) + u32(12) + u32(20) + bytes(8) + u32(0)
            session.call(MEMORY + "_write_buffers_wrapper", sequence([u64(base) + string(frames)]))
            error = session.ask(name.format("deregister"), args).error()
            self.assertIn("no section is registered", error)
            nowhere = u64(8) + u64(16)
            self.assertIn("read 4 bytes at 0x8", session.ask(name.format("register"), nowhere).error())
            self.assertEnds(session, 0)

    def test_a_program_that_ends_its_thread_ends_nothing_else(self):
        with start() as session:
            ends = u64(resolve(session, "pthread_exit"))
            for _ in range(3):
                self.assertEqual(session.call(RUN + "_void_function_wrapper", ends), b"")
            self.assertEqual(session.call(READ, NOTHING), NOTHING)
            self.assertEnds(session, 0)

    def test_a_crash_of_the_program_is_a_crash(self):
        with start() as session:
            session.start(RUN + "_void_function_wrapper", u64(resolve(session, "abort")))
            with self.assertRaises(Ended):
                session.receive()
            self.assertEqual(session.process.wait(60), -signal.SIGABRT)


if __name__ == "__main__":
    unittest.main()
