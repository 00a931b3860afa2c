# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Controllers that connect: their token, one after another, and the ends that the program makes by itself."""

import glob
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import programs
from controllers import jitlink
from sessions import EXECUTOR, MANAGER, READ, RUN, Case, load, start
from wire import CALL, HANGUP, RESULT, SETUP, Reader, Setup, message, read_message, sequence, u32, u64

TOKEN = b"0123456789abcdef"
SENT = u64(len(TOKEN)) + TOKEN
SPIN = bytes.fromhex("ebfe")
CRASH = bytes.fromhex("0f0b")


class Connection:
    """A controller's end of a connection, as sessions have it."""

    def __init__(self, connection):
        self.socket = connection
        opcode, *_, body = self.receive()
        assert opcode == SETUP
        self.symbols = Setup(body, True).symbols

    def receive(self):
        return read_message(self.socket.fileno())

    def start(self, function, args=b""):
        self.socket.sendall(message(CALL, 1, self.symbols[function], args))

    def ask(self, function, args=b""):
        self.start(function, args)
        opcode, *_, body = self.receive()
        assert opcode == RESULT
        return Reader(body)

    def works(self):
        return self.ask(READ, sequence([])).data == sequence([])


class Server(Case):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())

    def token(self, text=TOKEN + b"\n", mode=0o600):
        path = os.path.join(self.folder, "token")
        with open(path, "wb") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def listening(self, *options, command=(EXECUTOR,), **environment):
        """An executor at a port that the system chooses."""
        process = subprocess.Popen(
            [*command, *options, "listen=:0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(os.environ, **environment),
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        line = process.stderr.readline().decode()
        self.port = int(re.search(r"listening at 127\.0\.0\.1:(\d+)", line)[1])
        return process, line

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(connection.close)
        return connection


class Token(Server):
    def check(self, process):
        for wrong in (b"", SENT[:-1], u64(15) + TOKEN[:-1], u64(16) + TOKEN[::-1], u64(1 << 63) + TOKEN):
            with self.subTest(wrong=wrong):
                connection = self.connect()
                connection.sendall(wrong)
                # Not a byte of the protocol.
                try:
                    connection.shutdown(socket.SHUT_WR)
                    self.assertEqual(connection.recv(1), b"")
                except OSError:
                    pass
                self.assertIn(b"refused a connection of 127.0.0.1:", process.stderr.readline())
        connection = self.connect()
        connection.sendall(SENT)
        session = Connection(connection)
        self.assertTrue(session.works())
        connection.close()
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(process.stderr.read(), b"")

    def test_of_a_file(self):
        process, line = self.listening(f"--token-file={self.token()}")
        self.assertNotIn("can run code", line)
        self.check(process)

    def test_of_the_environment(self):
        process, _ = self.listening(JITMEM_EXECUTOR_TOKEN=TOKEN.decode())
        self.check(process)

    def test_without_one_this_machine_is_warned_of(self):
        process, line = self.listening()
        self.assertIn("every user of this machine can run code as this user", line)
        session = Connection(self.connect())
        self.assertTrue(session.works())

    def test_files_that_others_can_read_and_tokens_that_can_be_guessed(self):
        for path, words in (
            (self.token(mode=0o644), "can be used by other users"),
            (os.path.join(self.folder, "missing"), "No such file"),
            *self.token_of_another_user(),
        ):
            ran = subprocess.run([EXECUTOR, "--token-file", path, "listen=:0"], stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(ran.returncode, 1)
            self.assertIn(words, ran.stderr.decode())
        path = self.token(b"short\n")
        ran = subprocess.run([EXECUTOR, "--token-file", path, "listen=:0"], stderr=subprocess.PIPE, timeout=60)
        self.assertIn("a token of 5 bytes", ran.stderr.decode())

    def token_of_another_user(self):
        if os.geteuid() != 0:
            return
        path = os.path.join(self.folder, "another's")
        with open(path, "wb") as file:
            file.write(TOKEN)
        os.chmod(path, 0o600)
        os.chown(path, 54321, -1)
        yield path, "is user 54321's, who knows what is in it"

    def test_connections_that_say_nothing_hold_others_up(self):
        process, _ = self.listening(f"--token-file={self.token()}")
        silent, connection = self.connect(), self.connect()
        connection.sendall(SENT)
        connection.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            connection.recv(1)
        connection.settimeout(None)
        silent.close()
        self.assertTrue(Connection(connection).works())

    def test_dead_machines_are_found_out(self):
        process, _ = self.listening()
        session = Connection(self.connect())
        self.assertTrue(session.works())
        # The timer that is active once all is acknowledged: 02 is keep-alive's.
        limit = time.monotonic() + 60
        while self.timers(process) != ["02"]:
            self.assertLess(time.monotonic(), limit)

    def timers(self, process):
        with open(f"/proc/{process.pid}/net/tcp") as table:
            lines = [line.split() for line in table][1:]
        established = [line for line in lines if line[3] == "01"]
        return [line[5][:2] for line in established if int(line[1].split(":")[1], 16) == self.port]


class Serve(Server):
    def test_one_controller_after_another_and_at_a_time(self):
        process, _ = self.listening("--serve")
        sessions = [Connection(self.connect()) for _ in range(3)]
        self.assertTrue(all(session.works() for session in sessions))
        for session in sessions:
            session.socket.close()
        self.assertTrue(Connection(self.connect()).works())
        self.assertIsNone(process.poll())

    def test_a_crash_ends_one_session_and_is_reported(self):
        process, _ = self.listening("--serve")
        other, crashing = Connection(self.connect()), Connection(self.connect())
        address = load_over(crashing, CRASH)
        crashing.start(RUN + "_void_function_wrapper", u64(address))
        self.assertEqual(crashing.socket.recv(1), b"")
        lines = [process.stderr.readline().decode() for _ in range(2)]
        self.assertIn("killed by signal 4 (SIGILL)", lines[0])
        self.assertRegex(lines[1], r"the session of 127\.0\.0\.1:\d+ has ended: signal: 4 \(SIGILL\)")
        self.assertTrue(other.works())
        self.assertTrue(Connection(self.connect()).works())

    def test_no_more_at_a_time_than_asked_for(self):
        self.listening("--serve=1")
        first = Connection(self.connect())
        second = self.connect()
        second.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            second.recv(1)
        second.settimeout(None)
        first.socket.close()
        self.assertTrue(Connection(second).works())

    def test_each_session_has_the_limits_and_needs_the_token(self):
        process, _ = self.listening("--serve", f"--token-file={self.token()}", "--rlimit-nofile=50")
        refused = self.connect()
        refused.sendall(SENT[:-1] + b"x")
        self.assertEqual(refused.recv(1), b"")
        self.assertIn(b"its token is another one", process.stderr.readline())
        connection = self.connect()
        connection.sendall(SENT)
        self.assertTrue(Connection(connection).works())
        tasks = glob.glob(f"/proc/{process.pid}/task/*/children")
        (child,) = "".join(text_of(path) for path in tasks).split()
        self.assertRegex(text_of(f"/proc/{child}/limits"), r"Max open files\s+50\s+50")
        self.assertNotRegex(text_of(f"/proc/{process.pid}/limits"), r"Max open files\s+50\s+50")

    def test_a_session_that_can_not_be_started_ends_no_other(self):
        if os.geteuid() != 0:
            self.skipTest("only root can be a user with no other processes")
        os.chmod(self.folder, 0o755)
        program = shutil.copy(EXECUTOR, self.folder)
        through = ["setpriv", "--reuid=54322", "--clear-groups"]
        process, _ = self.listening("--serve", command=[*through, program])

        def limit_tasks(most):
            subprocess.run([*through, "prlimit", f"--pid={process.pid}", f"--nproc={most}:"], check=True)

        first = Connection(self.connect())
        limit_tasks(1)
        self.assertEqual(self.connect().recv(1), b"")
        self.assertRegex(process.stderr.readline().decode(), "refused a connection of .*: start a thread for a session")
        limit_tasks(1000)
        self.assertTrue(Connection(self.connect()).works())
        self.assertTrue(first.works())

    def test_more_connections_than_descriptors_end_nothing(self):
        command = ["prlimit", "--nofile=20", EXECUTOR]
        process, _ = self.listening("--serve", f"--token-file={self.token()}", command=command)
        silent = [self.connect() for _ in range(30)]
        self.assertIn(b"Too many open files", process.stderr.readline())
        connection = self.connect()
        for other in silent:
            other.close()
        connection.sendall(SENT)
        self.assertTrue(Connection(connection).works())

    def test_sessions_at_a_path(self):
        path = os.path.join(self.folder, "socket")
        process = subprocess.Popen([EXECUTOR, "--serve", f"unix={path}"], stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        for _ in range(3):
            connection = socket.socket(socket.AF_UNIX)
            while connection.connect_ex(path):
                self.assertIsNone(process.poll())
            self.assertTrue(Connection(connection).works())
            connection.close()


def text_of(path):
    with open(path) as file:
        return file.read()


def load_over(session, code):
    """`sessions.load` for a connection."""
    instance = u64(session.symbols[MANAGER + "_Instance"])
    answer = session.ask(MANAGER + "_reserve_wrapper", instance + u64(4096))
    base = answer.expected(answer.u64)
    segment = sequence([struct.pack("<BQQQ", 5, base, 4096, len(code)) + code])
    session.ask(MANAGER + "_initialize_wrapper", instance + segment + sequence([]))
    return base


class Ends(Server):
    def test_programs_that_run_for_too_long(self):
        with start(options=["--time-limit=1"]) as session:
            for _ in range(3):
                # What ends in time is no matter.
                self.assertEqual(session.call(READ, sequence([])), sequence([]))
            call = session.start(RUN + "_void_function_wrapper", u64(load(session, SPIN)))
            opcode, *_, body = session.receive()
            words = f"time limit: the program of call {call} ran for 1 s, so the executor has ended"
            self.assertEqual((opcode, body), (HANGUP, b"\1" + u64(len(words)) + words.encode()))
            self.assertEqual(session.process.wait(60), 124)
            self.assertEqual(session.process.stderr.read().decode(), f"jitmem: {words}\n")

    def test_programs_that_end_in_time(self):
        with start(options=["--time-limit=3600", "--exit-when-orphaned=3600"]) as session:
            code = load(session, bytes.fromhex("31c0c3"))
            for _ in range(100):
                self.assertEqual(session.call(RUN + "_void_function_wrapper", u64(code)), u32(0))
            self.assertEnds(session, 0)

    def test_llvms_controllers_say_why(self):
        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm), tempfile.TemporaryDirectory() as folder:
                script = os.path.join(folder, "executor")
                with open(script, "w") as file:
                    file.write(f'#!/bin/sh\nexec {EXECUTOR} --llvm={llvm} --time-limit=1 "$@"\n')
                os.chmod(script, 0o700)
                compiler = ["cc", "-O1", "-fPIC", "-x", "c", "-c", "-", "-o", script + ".o"]
                subprocess.run(compiler, input=b"int main(void) { for (;;) ; }", check=True)
                ran = jitlink(llvm, "generic", script, [script + ".o"])
                self.assertNotEqual(ran.code, 0)
                self.assertIn("time limit: the program of call", ran.complaint)
                self.assertEqual(ran.status, 124)

    def orphan(self, session, process):
        session.start(RUN + "_void_function_wrapper", u64(load_over(session, SPIN)))
        session.socket.close()
        self.assertEqual(process.wait(60), 1)
        self.assertIn(b"the controller has been gone for 0 s", process.stderr.read())

    def test_orphans(self):
        process, _ = self.listening("--exit-when-orphaned=0")
        self.orphan(Connection(self.connect()), process)

    def test_orphans_at_a_path(self):
        path = os.path.join(self.folder, "socket")
        command = [EXECUTOR, "--exit-when-orphaned=0", f"unix={path}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        connection = socket.socket(socket.AF_UNIX)
        while connection.connect_ex(path):
            self.assertIsNone(process.poll())
        self.orphan(Connection(connection), process)


if __name__ == "__main__":
    unittest.main()
