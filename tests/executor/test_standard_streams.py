# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Descriptors 0 to 2 of the program: they are there, and they are its own."""

import itertools
import os
import pty
import socket
import struct
import subprocess
import tempfile
import unittest

from sessions import EXECUTOR, RAX, RDI, RDX, RSI, Case, load, movabs, putting, resolve, start
from wire import HANGUP, SETUP, message, read_message

F_GETFL, F_SETFL = 3, 4


def from_linked_code(session, function, first, second, third=0):
    """Has linked code call a function of libc, and gives what that returns."""
    code = load(
        session,
        bytes.fromhex("4883ec08")
        + movabs(RDI, first)
        + movabs(RSI, second)
        + movabs(RDX, third)
        + movabs(RAX, resolve(session, function))
        # call rax, with no vector registers; the answer's bytes are in the first register.
        + bytes.fromhex("4989c2 31c0 41ffd2 48ba0400000000000000 4883c408 c3"),
    )
    return struct.unpack("<i", session.call(code))[0]


def fcntl(session, descriptor, command, argument):
    return from_linked_code(session, "fcntl", descriptor, command, argument)


def changes(session, descriptor):
    """Makes a descriptor not block, by linked code."""
    flags = fcntl(session, descriptor, F_GETFL, 0)
    assert flags >= 0, flags
    assert fcntl(session, descriptor, F_SETFL, flags | os.O_NONBLOCK) == 0
    assert fcntl(session, descriptor, F_GETFL, 0) & os.O_NONBLOCK


class Closed(Case):
    def test_what_is_closed_at_the_start_is_dev_null(self):
        for count in (1, 2, 3):
            for closed in itertools.combinations(range(3), count):
                with self.subTest(closed=closed):

                    def close():
                        for descriptor in closed:
                            os.close(descriptor)

                    with start(preexec_fn=close) as session:
                        for descriptor in range(3):
                            link = os.readlink(f"/proc/{session.process.pid}/fd/{descriptor}")
                            self.assertEqual(link == "/dev/null", descriptor in closed or not descriptor)
                        printing = putting(session)
                        for _ in range(2):
                            self.assertEqual(session.call(printing, b"printed\0"), b"\0")
                        code, out, _ = session.finish()
                        self.assertEqual(code, 0)
                        self.assertEqual(out, "" if 1 in closed else "printed\n" * 2)

    def test_the_channel_is_not_taken_for_what_was_closed(self):
        ran = subprocess.run(
            [EXECUTOR, "filedescs=0,1"],
            preexec_fn=lambda: os.close(0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        self.assertEqual(ran.returncode, 1)
        self.assertIn(b"take descriptor 0: Bad file descriptor", ran.stderr)


class Own(Case):
    def test_output_does_not_get_into_a_channel_that_was_a_standard_stream(self):
        here, there = socket.socketpair()
        with here:
            with there:
                process = subprocess.Popen(
                    [EXECUTOR, "filedescs=0,1"], stdin=there, stdout=there, stderr=subprocess.PIPE
                )
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            self.assertEqual(read_message(here.fileno())[0], SETUP)
            for descriptor in (0, 1):
                self.assertEqual(os.readlink(f"/proc/{process.pid}/fd/{descriptor}"), "/dev/null")
            here.sendall(message(HANGUP, body=b"\0"))
            self.assertEqual(process.wait(60), 0)

    def test_flags_of_pipes_stay_the_controllers(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        with start(stdin=reader, stderr=writer) as session:
            changes(session, 0)
            changes(session, 2)
            self.assertTrue(os.get_blocking(reader))
            self.assertTrue(os.get_blocking(writer))

    def test_flags_of_a_terminal_stay_the_controllers(self):
        leader, terminal = pty.openpty()
        self.addCleanup(os.close, leader)
        self.addCleanup(os.close, terminal)
        with start(stdin=terminal, stderr=terminal) as session:
            changes(session, 0)
            changes(session, 2)
            self.assertTrue(os.get_blocking(terminal))

    def test_flags_of_dev_null_stay_the_controllers(self):
        with open(os.devnull, "r+b", buffering=0) as null:
            with start(stderr=null) as session:
                changes(session, 2)
                self.assertTrue(os.get_blocking(null.fileno()))

    def test_flags_of_files_are_shared(self):
        with tempfile.TemporaryFile() as log:
            with start(stderr=log) as session:
                changes(session, 2)
                self.assertFalse(os.get_blocking(log.fileno()))

    def test_files_can_be_truncated(self):
        with tempfile.TemporaryFile() as log:
            log.write(b"before\n")
            log.flush()
            with start(stderr=log) as session:
                self.assertEqual(from_linked_code(session, "ftruncate", 2, 3), 0)
            self.assertEqual(os.fstat(log.fileno()).st_size, 3)

    def test_files_keep_their_position(self):
        with open(os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "log"), "w+b") as log:
            log.write(b"before\n")
            log.flush()
            with start(stderr=log) as session:
                # Written by the program itself when linked code crashes: behind what was there.
                session.start(load(session, bytes.fromhex("0f0b")))
                session.process.wait(60)
            log.write(b"behind\n")
            log.flush()
            log.seek(0)
            text = log.read()
        self.assertTrue(text.startswith(b"before\n"), text)
        self.assertIn(b"SIGILL", text)
        self.assertTrue(text.endswith(b"behind\n"), text)


if __name__ == "__main__":
    unittest.main()
