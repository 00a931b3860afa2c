# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What jitmem-executor is told, and by whom it is reached."""

import os
import re
import socket
import subprocess
import tempfile
import time
import unittest

import programs
from sessions import READ
from wire import CALL, HANGUP, RESULT, SETUP, Setup, message, read_message, sequence, u64

DEBUG = "llvm_orc_registerJITLoaderGDBWrapper"


def said(executor, *words, **options):
    options = {"stdin": subprocess.DEVNULL, "timeout": 60, "text": True, **options}
    ran = subprocess.run([executor, *words], capture_output=True, **options)
    return ran.returncode, ran.stdout, ran.stderr


def said_by_ours(*words, **options):
    return said(programs.PROGRAM, *words, **options)


def sockets(process):
    """What sockets a process has open."""
    folder = f"/proc/{process}/fd"
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink(os.path.join(folder, name)))
        except FileNotFoundError:
            pass  # closed meanwhile
    return [link for link in found if link.startswith("socket:")]


class Words(unittest.TestCase):
    def test_mistakes_are_what_the_stock_executor_calls_them(self):
        for words in (
            [],
            ["filedescs=x,4"],
            ["filedescs=3,y"],
            ["filedescs=3"],
            ["filedescs=3,4,5"],
            ["filedescs=3,4x"],
            ["filedescs"],
            ["listen=localhost:port"],
            ["listen=localhost"],
            ["listen=localhost:"],
            ["bogus=1"],
            ["bogus"],
            ["=", "filedescs=3,4"],
            ["test-one", "test-two", "filedescs=x,4"],
        ):
            for llvm in programs.LLVM:
                if llvm <= 16 and "test-one" in words:
                    continue
                with self.subTest(words=words, llvm=llvm):
                    code, _, stock = said(programs.stock_executor(llvm), *words)
                    self.assertEqual(code, 1)
                    code, out, ours = said_by_ours(*words)
                    self.assertEqual((code, out), (1, ""))
                    # The message, and an empty line before the usage.
                    self.assertEqual(ours.splitlines()[:2], stock.splitlines()[:2])
                    self.assertIn("usage: jitmem-executor", ours)

    def test_descriptors_that_are_not_there(self):
        code, out, err = said_by_ours("filedescs=97,98")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(
            err, f"{programs.PROGRAM}: take descriptor 97: Bad file descriptor (os error 9)\n"
        )

    def test_help_and_version(self):
        code, out, err = said_by_ours("--help")
        self.assertEqual((code, err), (0, ""))
        self.assertIn("filedescs=IN,OUT", out)
        code, out, err = said_by_ours("--version")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"^jitmem-executor \d+\.\d+\.\d+\n$")

    def test_words_before_and_behind_the_channel(self):
        here, there = socket.socketpair()
        with here, there:
            channel = f"filedescs={there.fileno()},{there.fileno()}"
            words = [programs.PROGRAM, "debug", "test-jitloadergdb", channel, "bogus=1", "--bogus"]
            process = subprocess.Popen(words, pass_fds=[there.fileno()], stderr=subprocess.PIPE)
            opcode, _, _, body = read_message(here.fileno())
            self.assertEqual(opcode, SETUP)
            address = Setup(body, True).symbols[DEBUG]
            for first in (4096, 8192):
                here.sendall(message(CALL, 0, address, u64(first) + u64(first + 16)))
                self.assertEqual(read_message(here.fileno()), (RESULT, 0, 0, b"\0"))
            here.sendall(message(HANGUP, body=b"\0"))
            _, err = process.communicate(timeout=60)
        last = r"__jit_debug_descriptor\.last_entry = 0x([0-9a-f]{16})"
        found = re.fullmatch(f"{last}\n{last}\n".encode(), err)
        self.assertTrue(found, err)
        self.assertEqual(int(found[1], 16), 0)
        self.assertNotEqual(int(found[2], 16), 0)


class Versions(unittest.TestCase):
    """Which layout the first message has."""

    def layouts(self, *words, **environment):
        """Those in which the first message of an executor can be read."""
        here, there = socket.socketpair()
        with here, there:
            channel = f"filedescs={there.fileno()},{there.fileno()}"
            process = subprocess.Popen(
                [programs.PROGRAM, *words, channel],
                pass_fds=[there.fileno()],
                env=dict(os.environ, **environment),
            )
            *_, body = read_message(here.fileno())
            here.sendall(message(HANGUP, body=b"\0"))
            self.assertEqual(process.wait(60), 0)
        found = []
        for with_map in (False, True):
            try:
                setup = Setup(body, with_map)
            except (ValueError, UnicodeDecodeError):
                continue
            if READ in setup.symbols:
                self.assertEqual(setup.rest, 0)
                found.append("map" if with_map else "no map")
        return found

    def test_who_chooses(self):
        for llvm in range(14, 23):
            layout = ["no map" if llvm <= 16 else "map"]
            self.assertEqual(self.layouts("--llvm", str(llvm)), layout)
            self.assertEqual(self.layouts(f"--llvm={llvm}", JITMEM_EXECUTOR_LLVM="14"), layout)
            self.assertEqual(self.layouts(JITMEM_EXECUTOR_LLVM=str(llvm)), layout)
        # Nothing tells: this controller has no LLVM.
        self.assertEqual(self.layouts(), ["map"])

    def test_versions_that_are_none(self):
        for number in ("13", "23", "", "x"):
            with self.subTest(number=number):
                code, _, err = said_by_ours("--llvm", number, "filedescs=3,4")
                self.assertEqual(code, 1)
                self.assertIn(f'"{number}" is no release of LLVM from 14 to 22', err)
                environment = dict(os.environ, JITMEM_EXECUTOR_LLVM=number)
                code, _, err = said_by_ours("filedescs=3,4", env=environment)
                self.assertEqual(code, 1)
                self.assertIn("JITMEM_EXECUTOR_LLVM", err)


class Sockets(unittest.TestCase):
    """An executor that waits for its controller."""

    def serve(self, connection, process):
        """One call over a connection, and the end."""
        opcode, *_, body = read_message(connection.fileno())
        self.assertEqual(opcode, SETUP)
        symbols = Setup(body, True).symbols
        connection.sendall(message(CALL, 7, symbols[READ], sequence([])))
        self.assertEqual(read_message(connection.fileno()), (RESULT, 7, 0, sequence([])))
        connection.close()
        self.assertEqual(process.wait(60), 0)

    def listening(self, *words):
        """An executor at a port that the system chooses."""
        process = subprocess.Popen(
            [programs.PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        line = process.stderr.readline().decode()
        found = re.search(r"listening at (127\.0\.0\.1|0\.0\.0\.0):(\d+)", line)
        self.assertTrue(found, line)
        return process, int(found[2]), line

    def test_tcp_serves_one_controller_of_this_machine(self):
        for word in ("listen=127.0.0.1:0", "listen=localhost:0", "listen=:0"):
            process, port, _ = self.listening(word)
            connection = socket.create_connection(("127.0.0.1", port))
            self.serve(connection, process)

    def test_a_port_that_others_reach_is_said(self):
        process, port, line = self.listening("listen=0.0.0.0:0")
        self.assertIn("every process that reaches this address can run code as this user", line)
        self.serve(socket.create_connection(("127.0.0.1", port)), process)

    def connect(self, address, process):
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                connection.connect(address)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                self.assertIsNone(process.poll())
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)

    def test_unix_sockets(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            process = subprocess.Popen([programs.PROGRAM, f"unix={path}"])
            self.serve(self.connect(path, process), process)
            self.assertEqual(os.listdir(folder), [])
            # A file that is no socket stays.
            with open(path, "w"):
                pass
            code, _, err = said_by_ours(f"unix={path}")
            self.assertEqual(code, 1)
            self.assertIn(f"listen at {path}", err)
            self.assertEqual(os.listdir(folder), ["socket"])

    def test_abstract_sockets(self):
        name = f"jitmem-executor-test-{os.getpid()}"
        process = subprocess.Popen([programs.PROGRAM, f"abstract={name}"])
        self.serve(self.connect("\0" + name, process), process)

    def test_llvm_jitlink_over_tcp(self):
        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                executor = subprocess.Popen(
                    [programs.PROGRAM, f"--llvm={llvm}", "listen=127.0.0.1:0"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                line = executor.stderr.readline().decode()
                port = int(re.search(r"listening at 127\.0\.0\.1:(\d+)", line)[1])
                connect = f"-oop-executor-connect=127.0.0.1:{port}"
                controller = subprocess.Popen(
                    [programs.controller(llvm), connect, *programs.objects("stdio.o")],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                executor.stdin.write(b"one\ntwo\n")
                executor.stdin.close()
                executor.stdin = None
                # main is at its end; then the controller closes its socket and waits for ever, so
                # the test has to end it.
                self.assertEqual(executor.stderr.readline(), b"2 lines\n")
                while controller.poll() is None and sockets(controller.pid):
                    time.sleep(0.01)
                controller.kill()
                controller.wait()
                out, err = executor.communicate(timeout=60)
                self.assertEqual((executor.returncode, out, err), (0, b"1: one\n2: two\n", b""))


if __name__ == "__main__":
    unittest.main()
