# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Messages and services, said and heard byte by byte."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
import unittest

import programs
from sessions import (
    EXECUTOR, MANAGER, MEMORY, NOTHING, READ, RUN, RW, Case, controller, dispatching, reserve,
    resolve, start, wrapper,
)
from wire import (
    CALL, HANGUP, RESULT, SETUP, Background, Ended, Session, call, message, pair, read_message,
    sequence, string, u8, u32, u64,
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

    def test_descriptors_that_do_not_block(self):
        with start(blocking=False) as session:
            size = 8 << 20
            base = reserve(session, size)
            # Larger than a pipe in both directions, so both ends are full in between.
            write = sequence([u64(base) + string(b"x" * size)])
            self.assertEqual(session.call(MEMORY + "_write_buffers_wrapper", write), b"")
            number = session.start(
                MEMORY + "_read_buffers_wrapper", sequence([u64(base) + u64(base + size)])
            )
            time.sleep(0.2)
            self.assertEqual(session.result(number), sequence([string(b"x" * size)]))
            self.assertEnds(session, 0)

    def test_an_executor_that_is_stopped_goes_on(self):
        with start() as session:
            whole = message(CALL, 5, session.symbols[READ], NOTHING)
            for cut in (0, 10, 32, 36):
                session.send(whole[:cut])
                session.process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, session.process.pid, os.WSTOPPED)
                session.process.send_signal(signal.SIGCONT)
                session.send(whole[cut:])
                self.assertEqual(session.receive(), (RESULT, 5, 0, NOTHING))
            self.assertEnds(session, 0)

    def test_what_a_controller_does_not_read_is_bounded(self):
        self.leave_unread(start(), 60 << 20, 100 << 20)

    def test_what_a_controller_does_not_read_is_bounded_as_asked(self):
        for command, environment in (
            ([EXECUTOR, "--unread=8M"], {}),
            ([programs.HOSTS["shared library"]], {"EXECUTOR_UNREAD": str(8 << 20)}),
        ):
            self.leave_unread(Session(command, environment=environment), 8 << 20, 30 << 20)

    def leave_unread(self, session, least, most):
        count, size = 2000, 128 << 10
        with session:
            page = session.symbols[READ] & ~4095
            ranges = sequence([u64(page) + u64(page + 4096)] * (size // 4096))
            asks = Background(
                lambda: [session.start(MEMORY + "_read_buffers_wrapper", ranges) for _ in range(count)]
            )
            peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", self.status(session))[1]) << 10
            # It answers until so much is left.
            limit = time.monotonic() + 60
            while peak() < least:
                self.assertLess(time.monotonic(), limit)
            found = {session.receive()[1] for _ in range(count)}
            self.assertEqual(found, set(asks.get()))
            self.assertLess(peak(), most)
            self.assertEnds(session, 0)

    def status(self, session):
        with open(f"/proc/{session.process.pid}/status") as status:
            return status.read()

    def test_numbers_are_the_callers_choice(self):
        with start() as session:
            for number in (0, 0, 1 << 63, (1 << 64) - 1, 7, 0):
                session.send(message(CALL, number, session.symbols[READ], NOTHING))
                self.assertEqual(session.receive(), (RESULT, number, 0, NOTHING))
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

    def test_calls_that_there_is_no_thread_for_are_refused(self):
        command = [EXECUTOR, "--rlimit-as=256M", "--stack-size=8M"]
        with Session(command, stdin=subprocess.PIPE) as session:
            getchar = u64(resolve(session, "getchar"))
            waiting = {session.start(RUN + "_void_function_wrapper", getchar) for _ in range(100)}
            _, number, tag, body = Background(session.receive).get()
            self.assertEqual((number in waiting, tag, body), (True, 0, b""))
            waiting.remove(number)
            # So that the others read the end.
            session.process.stdin.close()
            session.process.stdin = None
            bodies = []
            while waiting:
                opcode, number, tag, body = session.receive()
                self.assertEqual((opcode, tag), (RESULT, 0))
                waiting.remove(number)
                bodies.append(body)
            self.assertEqual(set(bodies) - {b""}, {u32((1 << 32) - 1)})
            code, _, err = session.finish()
            lines = err.splitlines()
            self.assertEqual((code, len(lines)), (0, 1 + bodies.count(b"")))
            for line in lines:
                self.assertRegex(line, r"^jitmem: call \d+ of the controller was refused: ")

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

    def test_hangup_waits_for_what_runs(self):
        with start(stdin=subprocess.PIPE) as session:
            getchar = u64(resolve(session, "getchar"))
            number = session.start(RUN + "_void_function_wrapper", getchar)
            session.send(message(HANGUP, body=b"\0"))
            session.process.stdin.write(b"x")
            session.process.stdin.close()
            session.process.stdin = None
            self.assertEqual(session.result(number), u32(ord("x")))
            self.assertEnds(session, 0)

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

    def test_an_outstanding_dispatch_is_told_why(self):
        with start() as session:
            function = wrapper(session, "dispatches")
            session.start(function, controller(session, 1) + b"?")
            self.assertEqual(session.receive(), (CALL, 0, 1, b"?"))
            self.assertEqual(session.finish(), (0, "disconnecting\n", ""))

    def test_a_dispatch_once_the_controller_is_gone(self):
        with start(stdin=subprocess.PIPE) as session:
            function = wrapper(session, "dispatches_after_stdin")
            session.start(function, controller(session, 1) + b"?")
            # The call runs: a later one is answered.
            self.assertEqual(session.call(READ, NOTHING), NOTHING)
            session.hang_up()
            with self.assertRaises(subprocess.TimeoutExpired):
                session.process.wait(0.3)
            out, err = session.process.communicate(timeout=60)
            self.assertEqual((session.process.returncode, out, err), (0, b"disconnecting\n", b""))

    def test_a_dispatch_once_the_session_has_ended(self):
        with start() as session:
            session.call(wrapper(session, "dispatches_at_exit"), controller(session, 1))
            gone = "jit_dispatch not available (EPC server shut down)"
            self.assertEqual(session.finish(), (0, f"{gone}\nrefused\n", ""))

    def test_a_dispatch_in_a_forked_child(self):
        with start() as session:
            answer = session.call(wrapper(session, "dispatches_in_child"), controller(session, 1))
            self.assertEqual(answer, u64(0))
            gone = "jit_dispatch not available (forked from the executor's process)"
            self.assertEqual(session.finish(), (0, f"{gone}\n", ""))

    def test_threads_of_linked_code_dispatch(self):
        with start() as session:
            function = wrapper(session, "dispatches_in_thread")
            calls = {
                session.start(function, controller(session, 1) + u32(index)): u32(index)
                for index in range(20)
            }
            while calls:
                opcode, number, tag, body = session.receive()
                if opcode == CALL:
                    self.assertEqual(tag, 1)
                    session.send(message(RESULT, number, 0, body * 5))
                else:
                    self.assertEqual((opcode, body), (RESULT, calls.pop(number) * 5))
            self.assertEnds(session, 0)

    def test_actions_dispatch(self):
        with start() as session:
            function = wrapper(session, "dispatches")
            instance = session.symbols[MANAGER + "_Instance"]
            base = reserve(session, 4096)
            action = pair(call(function, controller(session, 9) + b"?"))
            request = sequence([u8(RW) + u64(base) + u64(8) + string(b"data")]) + sequence([action])
            number = session.start(MANAGER + "_initialize_wrapper", u64(instance) + request)
            self.assertEqual(session.receive(), (CALL, 0, 9, b"?"))
            # Meanwhile memory can be had: the controller may need it for its answer.
            self.assertGreater(reserve(session, 4096), 0)
            session.send(message(RESULT, 0, 0, b"\0"))
            self.assertEqual(session.result(number), u8(1) + u64(base))
            self.assertEnds(session, 0)

    def test_results_of_all_sizes(self):
        with start() as session:
            function = wrapper(session, "sized")
            for size in (0, 1, 7, 8, 9, 4096, 100 << 20):
                self.assertTrue(session.call(function, u64(size)) == b"r" * size, size)
            self.assertEqual(session.call(wrapper(session, "out_of_band"), b"lost"), b"")
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

            # Each time that more are at work at once than ever before starts a thread: no more often
            # than calls are in flight.
            for _ in range(9):
                before = threads()
                work()
                if threads() <= before:
                    break
            else:
                self.fail(f"still threads are started: {before}, {threads()}")
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


if __name__ == "__main__":
    unittest.main()
