# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Unix sockets that the program listens at: who may connect, and what becomes of the file."""

import os
import socket
import stat
import subprocess
import tempfile
import unittest

from sessions import EXECUTOR, RUN
from wire import CALL, SETUP, Setup, message, read_message


class Sockets(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "socket")

    def waiting(self):
        """An executor at the path, once it listens there."""
        process = subprocess.Popen([EXECUTOR, f"unix={self.path}"], stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        # A datagram socket is refused differently once the executor listens.
        while True:
            self.assertIsNone(process.poll())
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(self.path)
                except (FileNotFoundError, ConnectionRefusedError):
                    continue
                except OSError:
                    return process

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        return connection

    def serve(self, connection, process):
        opcode, *_, body = read_message(connection.fileno())
        self.assertEqual(opcode, SETUP)
        connection.sendall(message(CALL, 0, Setup(body, True).symbols[RUN + "_void_function_wrapper"]))
        read_message(connection.fileno())
        connection.close()
        self.assertEqual(process.wait(60), 0)

    def test_a_second_one_leaves_the_first_alone(self):
        process = self.waiting()
        second = subprocess.run(
            [EXECUTOR, f"unix={self.path}"], stderr=subprocess.PIPE, timeout=60
        )
        self.assertEqual(second.returncode, 1)
        self.assertIn(b"Address already in use", second.stderr)
        self.serve(self.connect(), process)
        self.assertFalse(os.path.exists(self.path))

    def test_a_socket_that_was_left_is_replaced(self):
        process = self.waiting()
        process.kill()
        process.wait()
        self.assertTrue(stat.S_ISSOCK(os.stat(self.path).st_mode))
        process = self.waiting()
        self.serve(self.connect(), process)

    def test_the_controller_may_remove_the_socket(self):
        process = self.waiting()
        os.rename(self.path, self.path + ".moved")
        connection = socket.socket(socket.AF_UNIX)
        with open(self.path, "w") as other:
            other.write("precious")
        connection.connect(self.path + ".moved")
        self.serve(connection, process)
        with open(self.path) as other:
            self.assertEqual(other.read(), "precious")

    def test_other_users_are_refused(self):
        if os.geteuid() != 0:
            self.skipTest("only root can act as another user")
        name = f"jitmem-executor-test-users-{os.getpid()}"
        process = subprocess.Popen([EXECUTOR, f"abstract={name}"], stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                while True:
                    try:
                        other = socket.socket(socket.AF_UNIX)
                        other.connect("\0" + name)
                        break
                    except ConnectionRefusedError:
                        continue
                os._exit(0 if other.recv(1) == b"" else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertIn(b"of user 65534: only user 0 may connect", process.stderr.readline())
        connection = socket.socket(socket.AF_UNIX)
        connection.connect("\0" + name)
        self.serve(connection, process)


if __name__ == "__main__":
    unittest.main()
