# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Messages and services, said and heard byte by byte."""

import os
import re
import signal
import struct
import subprocess
import threading
import unittest

import programs
from wire import (
    CALL, HANGUP, RESULT, SETUP, Background, Ended, Failed, Reader, Session, call, message, pair,
    read_message, sequence, string, u8, u32, u64,
)

EXECUTOR = programs.EXECUTORS["shared library"]

MANAGER = "__llvm_orc_SimpleExecutorMemoryManager"
MAPPER = "__llvm_orc_ExecutorSharedMemoryMapperService"
DYLIBS = "__llvm_orc_SimpleExecutorDylibManager"
MEMORY = "__llvm_orc_bootstrap_mem"
RUN = "__llvm_orc_bootstrap_run_as"
READ = MEMORY + "_read_uint8s_wrapper"
NOTHING = sequence([])

R, RW, RX = 1, 3, 5


def start(llvm=22, **options):
    return Session([EXECUTOR], llvm, **options)


def resolve(session, name):
    """Where a function of the executor's process is."""
    if not hasattr(session, "process_handle"):
        answer = session.ask(
            DYLIBS + "_open_wrapper", u64(session.symbols[DYLIBS + "_Instance"]) + string("") + u64(0)
        )
        session.process_handle = answer.expected(answer.u64)
    request = u64(session.process_handle) + sequence([string(name) + u8(1)])
    answer = session.ask(DYLIBS + "_resolve_wrapper", request)
    found = answer.expected(lambda: answer.sequence(lambda: answer.optional(answer.definition)))
    return found[0][0] if found[0] else None


def reserve(session, size):
    answer = session.ask(
        MANAGER + "_reserve_wrapper", u64(session.symbols[MANAGER + "_Instance"]) + u64(size)
    )
    return answer.expected(answer.u64)


def initialize(session, segments, actions=()):
    """Segments are (protection, address, size, content)."""
    wire = sequence(u8(group) + u64(at) + u64(size) + string(data) for group, at, size, data in segments)
    request = u64(session.symbols[MANAGER + "_Instance"]) + wire + sequence(actions)
    answer = session.ask(MANAGER + "_initialize_wrapper", request)
    return answer.expected(answer.u64)


def load(session, code):
    """Puts machine code (x86-64) into the executor, and gives its address."""
    base = reserve(session, len(code))
    return initialize(session, [(RX, base, len(code), code)])


def movabs(register, value):
    return bytes([0x48, 0xB8 + register]) + u64(value)


RAX, RDX, RCX, RSI, RDI = 0, 2, 1, 6, 7


def dispatching(session, tag):
    """A wrapper function that has the controller answer."""
    return load(
        session,
        bytes.fromhex("4889fa 4889f1")  # mov rdx, rdi; mov rcx, rsi
        + movabs(RDI, session.symbols["__llvm_orc_SimpleRemoteEPC_dispatch_ctx"])
        + movabs(RSI, tag)
        + movabs(RAX, session.symbols["__llvm_orc_SimpleRemoteEPC_dispatch_fn"])
        + bytes.fromhex("4883ec08 ffd0 4883c408 c3"),  # sub rsp, 8; call rax; add rsp, 8; ret
    )


def putting(session):
    """A wrapper function that writes its argument, a string, to stdout, and succeeds."""
    return load(
        session,
        bytes.fromhex("4883ec08")
        + movabs(RAX, resolve(session, "puts"))
        + bytes.fromhex("ffd0 31c0 ba01000000 4883c408 c3"),  # call; xor eax, eax; mov edx, 1
    )


class Case(unittest.TestCase):
    maxDiff = None

    def assertEnds(self, session, code, error=""):
        found, _, err = session.finish()
        expected = f"{EXECUTOR}: {error}\n" if error else ""
        self.assertEqual((found, err), (code, expected))


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
        import socket

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


class LikeStock(Case):
    """The same requests to the stock executor and to ours, and the same answers."""

    def both(self, llvm, scenario):
        stock = programs.stock_executor(llvm)
        if not stock:
            self.skipTest(f"llvm-jitlink-executor-{llvm} is not installed")
        answers = []
        for executor in (stock, EXECUTOR):
            with Session([executor], llvm) as session:
                answers.append(scenario(session))
                session.finish()
        self.assertEqual(*answers)

    def test_everything_that_stock_publishes_is_published(self):
        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                stock = programs.stock_executor(llvm)
                if not stock:
                    self.skipTest(f"llvm-jitlink-executor-{llvm} is not installed")
                with Session([stock], llvm) as theirs, start(llvm) as ours:
                    self.assertGreater(len(theirs.symbols), 15)
                    self.assertLessEqual(set(theirs.symbols), set(ours.symbols))
                    for field in ("triple", "page_size", "map", "rest"):
                        self.assertEqual(getattr(theirs.setup, field), getattr(ours.setup, field))

    def lookup(self, session, requests):
        """Answers of the lookup of the session's generation, addresses as whether they are 0."""
        instance = u64(session.symbols[DYLIBS + "_Instance"])
        answer = session.ask(DYLIBS + "_open_wrapper", instance + string("") + u64(0))
        process = u64(answer.expected(answer.u64))
        results = []
        for names in requests:
            wire = sequence(string(name) + u8(required) for name, required in names)
            if DYLIBS + "_resolve_wrapper" in session.symbols and self.llvm == 22:
                answer = session.ask(DYLIBS + "_resolve_wrapper", process + wire)
                element = lambda: answer.optional(answer.definition)
            else:
                answer = session.ask(DYLIBS + "_lookup_wrapper", instance + process + wire)
                element = answer.u64 if self.llvm <= 16 else answer.definition
            try:
                found = answer.expected(lambda: answer.sequence(element))
            except Failed as failed:
                found = str(failed)
            else:
                found = [
                    item and ((item != 0) if self.llvm <= 16 else (item[0] != 0, *item[1:]))
                    for item in found
                ]
            results.append((names, found, len(answer.data) - answer.offset))
        return results

    def test_lookups(self):
        present, absent = "getpid", "no_such_symbol_anywhere"
        requests = [
            [],
            [(present, 1)],
            [(present, 0), (absent, 0), (present, 1)],
            [("", 0)],
            [(absent, 1)],
            [(absent, 0)] * 56,
        ]
        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                self.llvm = llvm
                # Required and without name: the stock executor of 22 aborts.
                more = [[("", 1)]] if llvm in (16, 19) else []
                self.both(llvm, lambda session: self.lookup(session, requests + more))

    def test_libraries(self):
        def scenario(session):
            instance = u64(session.symbols[DYLIBS + "_Instance"])
            said = []
            for path, mode in (("/nonexistent.so", 0), ("", 1), ("libm.so.6", 0)):
                answer = session.ask(DYLIBS + "_open_wrapper", instance + string(path) + u64(mode))
                try:
                    answer.expected(answer.u64)
                    said.append("opened")
                except Failed as failed:
                    said.append(str(failed))
            return said

        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def test_running(self):
        def scenario(session):
            said = []
            if RUN + "_void_function_wrapper" in session.symbols:
                # mov eax, edi; neg eax; ret; and main: mov eax, [rsi]'s first byte, minus argc
                instance = session.symbols[MANAGER + "_Instance"]
                base = session.ask(MANAGER + "_reserve_wrapper", u64(instance) + u64(4096))
                base = base.expected(base.u64)
                code = bytes.fromhex("89f8 f7d8 c3") + bytes(11)
                code += bytes.fromhex("488b06 0fb600 29f8 c3")
                wire = sequence([u8(RX) + u64(base) + u64(4096) + string(code)]) + NOTHING
                name = "_initialize_wrapper" if self.llvm == 22 else "_finalize_wrapper"
                session.call(MANAGER + name, u64(instance) + wire)
                args = u64(base) + u32(17)
                said.append(session.call(RUN + "_int_function_wrapper", args))
                for strings in (["abc"], ["\x05", "x", ""], [""]):
                    args = u64(base + 16) + sequence(map(string, strings))
                    said.append(session.call(RUN + "_main_wrapper", args))
            said.append(session.call(RUN + "_main_wrapper", b"short"))
            return said

        for llvm in (16, 19, 22):
            with self.subTest(llvm=llvm):
                self.llvm = llvm
                self.both(llvm, scenario)

    def refusals(self, session, requests):
        """What is said to each request, with addresses relative to the first reservation."""
        instance = u64(session.symbols[MANAGER + "_Instance"])
        answer = session.ask(MANAGER + "_reserve_wrapper", instance + u64(1 << 20))
        base = answer.expected(answer.u64)
        said = []
        for name, body, is_error in requests(base):
            answer = session.ask(f"{MANAGER}_{name}_wrapper", instance + body)
            if is_error:
                text = answer.error()
            else:
                try:
                    text = answer.expected(answer.u64) - base
                except Failed as failed:
                    text = str(failed)
            if isinstance(text, str):
                text = re.sub(
                    r"0x([0-9a-fA-F]{9,})", lambda hit: f"base+{int(hit.group(1), 16) - base:#x}", text
                )
            said.append((name, text))
        return said

    def test_the_memory_manager_of_22(self):
        def segment(base, offset, size, content=b"", group=RW):
            return u8(group) + u64(base + offset) + u64(size) + string(content)

        def requests(base):
            # Writable, or the stock executor dies of writing before it looks at what overlaps.
            one = sequence([segment(base, 0x1000, 0x1B88, b"data")])
            two = sequence([segment(base, 0x2000, 8)])
            yield "initialize", NOTHING + NOTHING, False
            yield "initialize", NOTHING + sequence([pair()]), False
            yield "initialize", sequence([segment(base, 0, 4, b"12345")]) + NOTHING, False
            yield "initialize", one + sequence([pair()]), False
            yield "initialize", two + NOTHING, False
            yield "initialize", one + NOTHING, False
            yield "deinitialize", sequence([u64(base)]), True
            yield "deinitialize", sequence([u64(16)]), True
            yield "deinitialize", sequence([u64(base + 0x1000)]), True
            yield "deinitialize", sequence([u64(base + 0x1000)]), True
            yield "deinitialize", NOTHING, True
            yield "release", sequence([u64(16)]), True
            yield "release", sequence([u64(base)]), True
            yield "release", sequence([u64(base)]), True

        self.both(22, lambda session: self.refusals(session, requests))

    def test_the_memory_manager_until_19(self):
        def segment(base, offset, size, content=b"", group=RW):
            return u8(group) + u64(base + offset) + u64(size) + string(content)

        def requests(base):
            yield "finalize", NOTHING + NOTHING, True
            yield "finalize", NOTHING + sequence([pair()]), True
            yield "finalize", sequence([segment(base, 0x1000, 8)]) + NOTHING, True
            yield "deallocate", sequence([u64(16)]), True
            yield "finalize", sequence([segment(base, 0, 8, b"data", R)]) + NOTHING, True
            yield "deallocate", sequence([u64(base)]), True
            yield "deallocate", sequence([u64(base)]), True

        for llvm in (14, 16, 19):
            with self.subTest(llvm=llvm):
                self.both(llvm, lambda session: self.refusals(session, requests))

    def test_the_shared_memory_mapper(self):
        def scenario(session):
            instance = u64(session.symbols[MAPPER + "_Instance"])
            answer = session.ask(MAPPER + "_Reserve", instance + u64(1 << 30))
            base, name = answer.expected(lambda: (answer.u64(), answer.string()))
            path = "/dev/shm" + name
            with open(path, "r+b") as file:
                os.unlink(path)
                file.write(b"\xb8" + u32(42) + b"\xc3")
            said = []
            for _ in range(2):
                segments = sequence([u8(RX) + u64(base) + u64(6), u8(RW) + u64(base + 4096) + u64(99)])
                answer = session.ask(
                    MAPPER + "_Initialize", instance + u64(base) + segments + sequence([pair()])
                )
                said.append(answer.expected(answer.u64) - base)
                said.append(session.call(RUN + "_void_function_wrapper", u64(base)))
                for keys in ([base], [base], [16], []):
                    answer = session.ask(
                        MAPPER + "_Deinitialize", instance + sequence(map(u64, keys))
                    )
                    said.append(answer.error())
            for bases in ([16], [base], [base]):
                answer = session.ask(MAPPER + "_Release", instance + sequence(map(u64, bases)))
                said.append(answer.error())
            return said

        for llvm in (16, 19, 22):
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def test_memory_access(self):
        def scenario(session):
            instance = session.symbols[MANAGER + "_Instance"]
            base = session.ask(MANAGER + "_reserve_wrapper", u64(instance) + u64(4096))
            base = base.expected(base.u64)
            said = []
            for index, (name, size) in enumerate(
                (("uint8s", 1), ("uint16s", 2), ("uint32s", 4), ("uint64s", 8))
            ):
                value = struct.pack("<Q", 0x1122334455667788)[:size]
                write = sequence([u64(base + 16 * index + offset) + value for offset in (0, 5)])
                said.append(session.call(f"{MEMORY}_write_{name}_wrapper", write))
            write = sequence([u64(base + 64) + string("hello\0world\0"), u64(base + 80) + string("")])
            said.append(session.call(MEMORY + "_write_buffers_wrapper", write))
            for name in ("uint8s", "uint16s", "uint32s", "uint64s"):
                addresses = sequence(u64(base + offset) for offset in range(0, 96, 3))
                said.append(session.call(f"{MEMORY}_read_{name}_wrapper", addresses))
                said.append(session.call(f"{MEMORY}_read_{name}_wrapper", NOTHING))
            strings = sequence([u64(base + 64), u64(base + 70), u64(base + 200)])
            said.append(session.call(MEMORY + "_read_strings_wrapper", strings))
            ranges = sequence([u64(base) + u64(base + 96), u64(base) + u64(base)])
            said.append(session.call(MEMORY + "_read_buffers_wrapper", ranges))
            return said

        self.both(22, scenario)


if __name__ == "__main__":
    unittest.main()
