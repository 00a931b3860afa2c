# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Executors that attack their controller, which is the installed library in this process."""

import ctypes
import os
import socket
import struct
import unittest

from wire import CALL, RESULT, SETUP, Background, Ended, message, read_message, sequence, string, u32, u64

TRIES = 1000
PAGE = 4096
UNSUPPORTED = 8
# As the library numbers what its service is asked for: what is called is an address.
OPEN, ATTACH, RESERVE, CHANGE, APPLY, CLOSE = range(0x1000, 0x7000, 0x1000)
SERVICE = {"jitmem_service_open": OPEN, "jitmem_service_instance": 0}
SO_COOKIE = 57


def library():
    """The C API."""
    path = os.path.join(os.environ["EXECUTOR_TEST_PREFIX"], "lib", "libjitmem.so")
    loaded = ctypes.CDLL(path)
    loaded.jitmem_error_message.restype = ctypes.c_char_p
    return loaded


LIBRARY = library()


class Controller:
    """A transport over one end of a connected socket, and what is asked for by it."""

    def __init__(self, end):
        self.transport = ctypes.c_void_p()
        self.message = None
        self.check(LIBRARY.jitmem_transport_socket, end.detach(), ctypes.byref(self.transport))

    def check(self, function, *args):
        """Calls a function of the library; its status."""
        error = ctypes.c_void_p()
        status = function(*args, ctypes.byref(error))
        if status:
            self.message = LIBRARY.jitmem_error_message(error).decode()
            LIBRARY.jitmem_error_free(error)
        return status

    def shared(self):
        """Makes a mapper of shared pages, and frees it; the status of that."""
        mapper = ctypes.c_void_p()
        make = LIBRARY.jitmem_mapper_shared
        status = self.check(make, self.transport, None, ctypes.byref(mapper))
        if not status:
            LIBRARY.jitmem_mapper_free(mapper)
        return status

    def free(self):
        LIBRARY.jitmem_transport_free(self.transport)


def setup(symbols=SERVICE):
    """The first message of an executor of LLVM 22."""
    named = sequence(string(name) + u64(address) for name, address in symbols.items())
    return message(SETUP, body=string("x86_64-pc-linux-gnu") + u64(PAGE) + sequence([]) + named)


def opened():
    """What the service answers to `open`."""
    functions = b"".join(u64(function) for function in (ATTACH, RESERVE, CHANGE, APPLY, CLOSE))
    return b"\1" + u64(1) + u64(PAGE) + b"\1" + functions


def serve(end, answer):
    """Answers each call with what `answer` makes of its tag, until the controller hangs up."""
    try:
        while True:
            opcode, number, tag, body = read_message(end.fileno())
            assert opcode == CALL
            end.sendall(message(RESULT, number, 0, answer(tag, body)))
    except (Ended, OSError):
        pass


class Victim:
    """Two processes' connection, of which the controller knows nothing: a process that holds one end."""

    def __init__(self, kind=socket.SOCK_STREAM):
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        heard, said = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            self.ours.close()
            theirs.settimeout(60)
            os.write(said, theirs.recv(100))
            os._exit(0)
        os.close(said)
        self.descriptor, self.heard = theirs.fileno(), heard
        self.theirs = theirs

    def is_untouched(self):
        """Whether what is sent to it arrives, and it was sent nothing before."""
        self.ours.send(b"secret")
        self.ours.setblocking(False)
        found = os.read(self.heard, 100)
        os.waitpid(self.process, 0)
        os.close(self.heard)
        try:
            nothing_came = self.ours.recv(100) == b""
        except BlockingIOError:
            nothing_came = True
        self.ours.close()
        return found == b"secret" and nothing_came


class DescriptorPassing(unittest.TestCase):
    def offer(self, pinned):
        """Answers name a socket of another process by process, descriptor and the cookie that the controller's
        next socket will have, in every place where a number may stand."""
        processors = os.sched_getaffinity(0)
        victim = Victim()
        victim.theirs.close()
        if pinned:
            # Cookies are given out by processor.
            os.sched_setaffinity(0, {min(processors)})
        self.addCleanup(os.sched_setaffinity, 0, processors)

        def answer(tag, body):
            if tag == OPEN:
                return opened() + u32(victim.process)
            with socket.socket() as last:
                cookie = struct.unpack("<Q", last.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
            offer = u32(victim.process) + u32(victim.descriptor) + u64(cookie + 1)
            return b"\1" + offer

        for _ in range(TRIES):
            ours, theirs = socket.socketpair()
            theirs.sendall(setup())
            executor = Background(lambda: serve(theirs, answer))
            controller = Controller(ours)
            controller.shared()
            controller.free()
            executor.get()
            theirs.close()
        self.assertTrue(victim.is_untouched())

    def test_no_number_leads_to_another_process(self):
        self.offer(pinned=False)

    def test_no_number_leads_to_another_process_on_one_processor(self):
        self.offer(pinned=True)

    def test_a_socket_of_another_process_that_comes_along_is_not_used(self):
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            victim = Victim(kind)
            # What the executor has is a connection to that process, as of a service.
            connection = victim.ours.dup()

            def answer(tag, body):
                if tag == OPEN:
                    return opened()
                # The controller listens nowhere else, and opens nothing.
                return b"\1" if body[8:9] == b"\2" else b"\0" + u32(UNSUPPORTED) + string("no")

            for _ in range(TRIES):
                ours, theirs = socket.socketpair()
                socket.send_fds(theirs, [setup()], [connection.fileno()])
                executor = Background(lambda: serve(theirs, answer))
                controller = Controller(ours)
                self.assertEqual(controller.shared(), UNSUPPORTED)
                self.assertIn("not at the other end of the socket", controller.message)
                controller.free()
                executor.get()
                theirs.close()
            connection.close()
            victim.theirs.close()
            self.assertTrue(victim.is_untouched())


if __name__ == "__main__":
    unittest.main()
