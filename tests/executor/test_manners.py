# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""How the program gets along with what it inherits, with handlers of others, and with other programs."""

import os
import signal
import socket
import stat
import subprocess
import tempfile
import unittest

import programs
from controllers import jitlink
from sessions import EXECUTOR, RUN, Case, library, load, resolve, start
from wire import CALL, SETUP, Ended, Setup, message, read_message, u32, u64

CRASH = bytes.fromhex("8b042510000000 c3")  # mov eax, [16]; ret


def run_void(session, address):
    session.start(RUN + "_void_function_wrapper", u64(address))


def shared_object(folder, name, text, *words):
    path = os.path.join(folder, name)
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path, *words]
    subprocess.run(command, input=text.encode(), check=True)
    return path


class Crashes(Case):
    def assertDies(self, session, number):
        with self.assertRaises(Ended):
            session.receive()
        self.assertEqual(session.process.wait(60), -number)

    def test_a_trap_that_would_not_come_again(self):
        with start() as session:
            run_void(session, load(session, bytes.fromhex("cc c3")))  # int3; ret
            self.assertDies(session, signal.SIGTRAP)
            line = session.process.stderr.read().decode()
            self.assertEqual(line, f"{EXECUTOR}: killed by signal 5 (SIGTRAP)\n")

    def test_nobody_reads_what_is_said(self):
        for closed in (False, True):
            with self.subTest(closed=closed):
                reader, writer = os.pipe()
                os.set_blocking(writer, False)
                try:
                    while True:
                        os.write(writer, bytes(65536))
                except BlockingIOError:
                    os.set_blocking(writer, True)
                if closed:
                    os.close(reader)
                with start(stderr=writer) as session:
                    os.close(writer)
                    run_void(session, resolve(session, "abort"))
                    self.assertDies(session, signal.SIGABRT)
                if not closed:
                    os.close(reader)

    def test_handlers_that_call_the_one_before(self):
        for executor in (EXECUTOR, programs.stock_executor(22)):
            with self.subTest(executor=executor):
                ran = jitlink(22, "generic", executor, programs.objects("chains.o"))
                self.assertEqual((ran.code, ran.status), (1, -signal.SIGSEGV), ran)
                said = ran.complaint.count("killed by signal 11 (SIGSEGV) at address 0x10")
                self.assertEqual(said, executor == EXECUTOR, ran)

    def test_handlers_that_were_there_before(self):
        text = """
            #include <signal.h>
            #include <unistd.h>
            static void end(int signal) { _exit(70 + signal); }
            __attribute__((constructor)) static void begin(void) { signal(SIGSEGV, end); }
        """
        with tempfile.TemporaryDirectory() as folder:
            preloaded = shared_object(folder, "libends.so", text)
            with start(environment={"LD_PRELOAD": preloaded}) as session:
                run_void(session, load(session, CRASH))
                self.assertEqual(session.process.wait(60), 70 + signal.SIGSEGV)
                self.assertEqual(session.process.stderr.read(), b"")


class Inherited(Case):
    def test_what_is_ignored_stays_ignored(self):
        # Python ignores the signal.
        for restore in (False, True):
            with start(restore_signals=restore) as session:
                args = u64(resolve(session, "raise")) + u32(signal.SIGPIPE)
                session.start(RUN + "_int_function_wrapper", args)
                if restore:
                    with self.assertRaises(Ended):
                        session.receive()
                    self.assertEqual(session.process.wait(60), -signal.SIGPIPE)
                else:
                    self.assertEqual(session.receive()[3], u32(0))

    def test_a_closed_descriptor_is_not_taken_for_the_other(self):
        reader, writer = os.pipe()
        top = os.open("/dev/null", os.O_RDONLY)
        os.close(top)
        ran = subprocess.run(
            [EXECUTOR, f"filedescs={reader},{top}"],
            pass_fds=(reader,),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(reader)
        os.close(writer)
        self.assertEqual(ran.returncode, 1)
        self.assertIn(f"take descriptor {top}: Bad file descriptor", ran.stderr.decode())

    def test_what_can_not_be_printed_is_a_failure(self):
        for word in ("--help", "--version", "--no-such"):
            with open("/dev/full", "wb") as full:
                ran = subprocess.run([EXECUTOR, word], stdout=full, stderr=full, timeout=60)
                self.assertEqual(ran.returncode, 1)


class Programs(Case):
    def test_children_that_come_to_the_end_of_main(self):
        ran = jitlink(22, "generic", EXECUTOR, programs.objects("returns.o"))
        self.assertEqual((ran.code, ran.output), (7, "child parent"), ran)

    def test_libraries_that_do_not_say_what_they_need(self):
        text = "double cos(double); int angle(void) { volatile double x = 0; return 41 + cos(x); }"
        with tempfile.TemporaryDirectory() as folder:
            path = shared_object(folder, "libangle.so", text)
            with start() as session:
                self.assertTrue(library(session, path))
                function = u64(resolve(session, "angle", path))
                self.assertEqual(session.call(RUN + "_void_function_wrapper", function), u32(42))
                self.assertEnds(session, 0)


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
        # Whoever asks with a datagram socket is refused differently once somebody listens.
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
