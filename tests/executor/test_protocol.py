# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Messages and services, said and heard byte by byte."""

import os
import re
import signal
import socket
import subprocess
import threading
import unittest

import programs
from sessions import (
    EXECUTOR, MANAGER, MAPPER, MEMORY, NOTHING, READ, RUN, R, RW, RX, Case, dispatching, initialize,
    putting, reserve, resolve, start,
)
from wire import (
    CALL, HANGUP, RESULT, SETUP, Background, Ended, call, message, pair, read_message, sequence, string,
    u8, u32, u64,
)


class Framing(Case):
    def broken(self, data, error):
        with start() as session:
            session.send(data)
            self.assertEnds(session, 1, error)

    def test_the_end_between_messages_is_no_error(self):
        with start() as session:
            self.assertEnds(session, 0)
        with start() as session:
            self.assertEqual(session.call(READ, NOTHING), NOTHING)
            self.assertEnds(session, 0)

    def test_hangup_ends_the_session(self):
        for body in (b"\0", b"\1" + string("tired"), b""):
            with start() as session:
                session.send(message(HANGUP, body=body))
                with self.assertRaises(Ended):
                    session.receive()
                self.assertEqual(session.process.wait(60), 0)

    def test_a_size_below_the_headers_own(self):
        for size in (0, 1, 31):
            self.broken(message(CALL, size=size), "Message size too small")

    def test_an_unknown_opcode(self):
        for opcode in (4, 1 << 32, (1 << 64) - 1):
            self.broken(message(opcode), "Unexpected opcode")

    def test_setup_is_for_executors(self):
        self.broken(message(SETUP), "Unexpected Setup opcode")
        self.broken(message(SETUP, body=b"abc"), "Unexpected Setup opcode")

    def test_results_answer_calls_and_have_no_tag(self):
        self.broken(message(RESULT, 17), "No call for sequence number 17")
        self.broken(message(RESULT, (1 << 64) - 1), f"No call for sequence number {(1 << 64) - 1}")
        self.broken(message(RESULT, 0, 1), "Unexpected tag in a Result message")

    def test_the_end_inside_a_message(self):
        whole = message(CALL, 0, 1, b"body")
        for cut in (1, 7, 8, 31, 32, 33, 35):
            self.broken(whole[:cut], "Unexpected end-of-file")

    def test_a_size_that_is_a_lie_takes_no_memory(self):
        for size in (1 << 33, 1 << 40, (1 << 64) - 1):
            with start() as session:
                session.send(message(CALL, 0, 1, b"x" * 1000, size=size))
                # What came before is answered, so it has seen the header.
                with open(f"/proc/{session.process.pid}/status") as status:
                    peak = int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))
                self.assertLess(peak, 64 << 10)
                self.assertEnds(session, 1, "Unexpected end-of-file")

    def test_bytes_that_dribble(self):
        with start() as session:
            for byte in message(CALL, 5, session.symbols[READ], NOTHING):
                session.send(bytes([byte]))
            self.assertEqual(session.receive(), (RESULT, 5, 0, NOTHING))
            self.assertEnds(session, 0)

    def test_a_large_body_travels_whole(self):
        with start() as session:
            size = 200 << 20
            base = reserve(session, size)
            data = os.urandom(1 << 20) * 200
            sender = Background(
                lambda: session.start(
                    MEMORY + "_write_buffers_wrapper", sequence([u64(base) + string(data)])
                )
            )
            opcode, number, tag, body = session.receive()
            self.assertEqual((opcode, number, tag, body), (RESULT, sender.get(), 0, b""))
            ranges = sequence([u64(base) + u64(base + size)])
            answer = session.ask(MEMORY + "_read_buffers_wrapper", ranges)
            self.assertTrue(answer.sequence(answer.bytes) == [data])
            self.assertEnds(session, 0)

    def test_one_socket_for_both_directions(self):
        here, there = socket.socketpair()
        process = subprocess.Popen(
            [EXECUTOR, f"filedescs={there.fileno()},{there.fileno()}"], pass_fds=(there.fileno(),)
        )
        there.close()
        opcode, *_ = read_message(here.fileno())
        self.assertEqual(opcode, SETUP)
        here.sendall(message(HANGUP, body=b"\0"))
        self.assertEqual(process.wait(60), 0)
        here.close()

    def test_a_controller_that_stops_listening_is_an_error_and_no_signal(self):
        with start() as session:
            os.close(session.input)
            session.input = None
            # The first answer finds that out, the next message that it was found out.
            try:
                while True:
                    session.start(READ, NOTHING)
            except BrokenPipeError:
                pass
            session.process.wait(60)
            self.assertEnds(session, 1, "write to the controller: Broken pipe (os error 32)")


class Calls(Case):
    def test_pipelined_calls_are_all_answered(self):
        with start() as session:
            numbers = [session.start(READ, NOTHING) for _ in range(33)]
            answers = [session.receive() for _ in numbers]
            self.assertEqual(sorted(answer[1] for answer in answers), numbers)
            self.assertEnds(session, 0)

    def test_calls_that_block_hinder_nobody(self):
        with start(stdin=subprocess.PIPE) as session:
            getchar = u64(resolve(session, "getchar"))
            blocked = {session.start(RUN + "_void_function_wrapper", getchar) for _ in range(33)}
            for _ in range(100):
                self.assertEqual(session.call(READ, NOTHING), NOTHING)
            session.process.stdin.write(b"x" * 33)
            session.process.stdin.flush()
            for _ in range(33):
                opcode, number, tag, body = session.receive()
                self.assertEqual((opcode, tag, body), (RESULT, 0, u32(ord("x"))))
                blocked.remove(number)
            self.assertEnds(session, 0)

    def test_the_end_waits_for_what_runs(self):
        with start(stdin=subprocess.PIPE) as session:
            session.start(RUN + "_void_function_wrapper", u64(resolve(session, "getchar")))
            # The call runs: a later one is answered.
            self.assertEqual(session.call(READ, NOTHING), NOTHING)
            session.hang_up()
            with self.assertRaises(subprocess.TimeoutExpired):
                session.process.wait(0.3)
            session.process.stdin.close()
            session.process.stdin = None
            self.assertEqual(session.process.wait(60), 0)

    def test_linked_code_calls_the_controller(self):
        with start() as session:
            function = dispatching(session, 0xABC)
            outer = session.start(function, b"question")
            self.assertEqual(session.receive(), (CALL, 0, 0xABC, b"question"))
            inner = session.start(function, b"another")
            self.assertEqual(session.receive(), (CALL, 1, 0xABC, b"another"))
            # Meanwhile the executor does what else it is asked for, and answers come in any order.
            self.assertEqual(session.call(READ, NOTHING), NOTHING)
            session.send(message(RESULT, 0, 0, b"a longer answer"))
            self.assertEqual(session.result(outer), b"a longer answer")
            session.send(message(RESULT, 1, 0, b"short"))
            self.assertEqual(session.result(inner), b"short")
            self.assertEnds(session, 0)

    def test_a_hundred_dispatches_at_once(self):
        with start() as session:
            function = dispatching(session, 1)
            calls = {session.start(function, u32(index)): u32(index) for index in range(100)}
            questions = {}
            for _ in calls:
                opcode, number, _, body = session.receive()
                self.assertEqual(opcode, CALL)
                questions[number] = body
            self.assertEqual(sorted(questions), list(range(100)))
            for number, body in reversed(questions.items()):
                session.send(message(RESULT, number, 0, body * 3))
            while calls:
                opcode, number, _, body = session.receive()
                self.assertEqual((opcode, body), (RESULT, calls.pop(number) * 3))
            self.assertEnds(session, 0)

    def test_an_outstanding_dispatch_ends_with_the_session(self):
        with start() as session:
            function = dispatching(session, 1)
            number = session.start(function, b"?")
            session.receive()
            os.close(session.output)
            session.output = None
            # An out-of-band error, so an answer without bytes.
            self.assertEqual(session.result(number), b"")
            self.assertEnds(session, 0)

    def test_a_result_is_taken_once(self):
        with start() as session:
            number = session.start(dispatching(session, 1), b"?")
            session.receive()
            session.send(message(RESULT, 0, 0, b"!"))
            self.assertEqual(session.result(number), b"!")
            session.send(message(RESULT, 0, 0, b"!"))
            self.assertEnds(session, 1, "No call for sequence number 0")

    def test_no_thread_is_started_once_there_are_enough(self):
        with start() as session:
            instance = session.symbols[MANAGER + "_Instance"]
            request = u64(instance) + NOTHING

            def work():
                for _ in range(200):
                    numbers = {
                        session.start(name, args)
                        for name, args in 4
                        * [(READ, NOTHING), (MANAGER + "_deinitialize_wrapper", request)]
                    }
                    while numbers:
                        numbers.remove(session.receive()[1])

            def threads():
                return set(os.listdir(f"/proc/{session.process.pid}/task"))

            work()
            before = threads()
            work()
            self.assertLessEqual(threads(), before)
            self.assertEnds(session, 0)

    def test_calls_from_many_threads_of_the_controller(self):
        with start() as session:
            lock = threading.Lock()
            wanted = {}

            def send(first):
                for index in range(first, 4000, 8):
                    with lock:
                        wanted[session.start(READ, sequence([u64(address)]))] = index
                    if index % 100 == 0:
                        os.sched_yield()

            address = reserve(session, 1)
            senders = [Background(lambda first=first: send(first)) for first in range(8)]
            for _ in range(4000):
                opcode, number, tag, body = session.receive()
                self.assertEqual((opcode, tag, body), (RESULT, 0, sequence([u8(0)])))
            for sender in senders:
                sender.get()
            self.assertEqual(sorted(wanted), list(range(1, 4001)))
            self.assertEnds(session, 0)


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
        before = programs.shared_memory()
        with start() as session:
            instance = u64(session.symbols[MAPPER + "_Instance"])
            answer = session.ask(MAPPER + "_Reserve", instance + u64(1 << 30))
            _, name = answer.expected(lambda: (answer.u64(), answer.string()))
            self.assertIn(name[1:], programs.shared_memory() - before)
            self.assertEnds(session, 0)
        self.assertEqual(programs.shared_memory() - before, set())


class Process(Case):
    def test_the_hosts_own_symbols_are_published(self):
        with start() as session:
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
        with start(environment={"EXECUTOR_C_ONLY": "1"}) as session:
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

            version, relevant, entry = read(descriptor, descriptor + 8, descriptor + 16)
            self.assertEqual((version, relevant), (1 | 1 << 32, entry))
            found = []
            previous = 0
            while entry:
                following, back, first, size = read(entry, entry + 8, entry + 16, entry + 24)
                self.assertEqual(back, previous)
                found.append((first, first + size))
                previous, entry = entry, following
            self.assertEqual(found, objects[::-1])
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
