# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Executors that attack their controller, which is the installed library in this process."""

import ctypes
import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
import termios
import unittest

from wire import CALL, RESULT, SETUP, Background, Ended, message, read_message, sequence, string, u32, u64

TRIES = 1000
PAGE = 4096
MIB = 1 << 20
DISCONNECTED, MAPPER_FAILED, UNSUPPORTED, TIMED_OUT = 9, 10, 8, 14
# As the library numbers what its service is asked for: what is called is an address.
OPEN, ATTACH, RESERVE, CHANGE, APPLY, CLOSE = range(0x1000, 0x7000, 0x1000)
SERVICE = {"jitmem_service_open": OPEN, "jitmem_service_instance": 0}
# Of an executor that is sent a socket.
TAKES_DESCRIPTORS = {**SERVICE, "jitmem_service_takes_descriptors": 1}
SO_COOKIE, SO_PASSRIGHTS = 57, 83
# Kinds of attach, and half of a listener's name.
LISTENING, ACCEPT = 3, 4
HIGH = 0x0123456789ABCDEF


def library():
    """The C API."""
    path = os.path.join(os.environ["EXECUTOR_TEST_PREFIX"], "lib", "libjitmem.so")
    loaded = ctypes.CDLL(path)
    loaded.jitmem_error_message.restype = ctypes.c_char_p
    return loaded


LIBRARY = library()


class Limits(ctypes.Structure):
    """`jitmem_limits`, in milliseconds."""

    _fields_ = [("struct_size", ctypes.c_size_t)] + [
        (name, ctypes.c_uint64) for name in ("set_up", "memory", "code", "session", "close", "answer")
    ]


TAKE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Controller:
    """A transport over one end of a connected socket, and what is asked for by it."""

    def __init__(self, end, limits=None):
        self.transport = ctypes.c_void_p()
        self.message = None
        make = LIBRARY.jitmem_transport_connect
        self.status = self.check(make, end.detach(), limits, ctypes.byref(self.transport))

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

    def manager(self):
        """Makes a manager over a mapper of shared pages, and frees both; the status of that."""
        mapper, manager = ctypes.c_void_p(), ctypes.c_void_p()
        status = self.check(LIBRARY.jitmem_mapper_shared, self.transport, None, ctypes.byref(mapper))
        if not status:
            make = LIBRARY.jitmem_manager_create
            status = self.check(make, mapper, None, ctypes.byref(manager))
            LIBRARY.jitmem_manager_free(manager)
            LIBRARY.jitmem_mapper_free(mapper)
        return status

    def call(self):
        """Has the executor call a function; the status and the bytes of the answer."""
        found = []
        take = TAKE(lambda _, data, size: found.append(size))
        function = ctypes.c_uint64(OPEN)
        size = ctypes.c_size_t(0)
        call = LIBRARY.jitmem_transport_call
        status = self.check(call, self.transport, function, None, size, take, None)
        return status, *found

    def free(self):
        LIBRARY.jitmem_transport_free(self.transport)


def refuses_descriptors():
    """Whether the kernel lets a socket take none."""
    with socket.socket(socket.AF_UNIX) as end:
        try:
            end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


def unread(end):
    """Whether the other end has not read all that was sent."""
    return any(fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))


def peak():
    """Bytes of memory that this process has had at most."""
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read())[1]) << 10


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def connected():
    """A controller, and the end that an executor has which has introduced itself."""
    ours, theirs = socket.socketpair()
    theirs.sendall(setup())
    return Controller(ours), theirs


def setup(symbols=SERVICE):
    """The first message of an executor of LLVM 22."""
    named = sequence(string(name) + u64(address) for name, address in symbols.items())
    return message(SETUP, body=string("x86_64-pc-linux-gnu") + u64(PAGE) + sequence([]) + named)


def opened():
    """What the service answers to `open`."""
    functions = b"".join(u64(function) for function in (ATTACH, RESERVE, CHANGE, APPLY, CLOSE))
    frames = b"\0" + u64(0) + u64(0)
    private_data = b"\0"
    return b"\1" + u64(1) + u64(PAGE) + b"\1" + functions + frames + private_data


def serve(end, answer):
    """Answers each call with what `answer` makes of its tag, or not, until the controller hangs up."""
    try:
        while True:
            opcode, number, tag, body = read_message(end.fileno())
            assert opcode == CALL
            answered = answer(tag, body)
            if answered is not None:
                end.sendall(message(RESULT, number, 0, answered))
    except (Ended, OSError):
        pass


def listener_of(process):
    """The name at which an executor listens for controllers."""
    folder = f"/proc/{process}/fd"
    files = {os.readlink(os.path.join(folder, number)) for number in os.listdir(folder)}
    with open("/proc/net/unix") as sockets:
        for *_, inode, name in (line.split() for line in sockets if "@jitmem-executor-" in line):
            if f"socket:[{inode}]" in files:
                return "\0" + name[1:]
    raise AssertionError("it does not listen")


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
            for _ in range(TRIES):
                ours, theirs = socket.socketpair()
                socket.send_fds(theirs, [setup(TAKES_DESCRIPTORS)], [connection.fileno()])
                controller = Controller(ours)
                self.assertEqual(controller.status, MAPPER_FAILED)
                self.assertIn("descriptors, of which none is taken", controller.message)
                theirs.close()
            connection.close()
            victim.theirs.close()
            self.assertTrue(victim.is_untouched())

    def test_a_socket_through_which_no_token_comes_is_not_used(self):
        def answer(tag, body):
            if tag == OPEN:
                return opened()
            # It says that it has taken the socket.
            return b"\1" if body[8:9] == b"\2" else b"\0" + u32(UNSUPPORTED) + string("no")

        ours, theirs = socket.socketpair()
        theirs.sendall(setup(TAKES_DESCRIPTORS))
        executor = Background(lambda: serve(theirs, answer))
        controller = Controller(ours)
        self.assertEqual(controller.shared(), UNSUPPORTED)
        self.assertIn("has not answered through the socket that was sent along", controller.message)
        controller.free()
        executor.get()
        theirs.close()

    def name_a_listener(self, low, accept):
        """An executor that can't connect names a listener that is another process's, and says that it has accepted."""

        def answer(tag, body):
            if tag == OPEN:
                return opened()
            return {
                bytes([LISTENING]): b"\1" + u64(HIGH) + u64(low),
                bytes([ACCEPT]): b"\1",
            }.get(body[8:9], b"\0" + u32(UNSUPPORTED) + string("no"))

        ours, theirs = socket.socketpair()
        theirs.sendall(setup())
        executor = Background(lambda: serve(theirs, answer))
        controller = Controller(ours)
        status = controller.shared()
        accept()
        controller.free()
        executor.get()
        theirs.close()
        return status, controller.message

    def test_a_listener_of_another_process_that_is_named_is_not_used(self):
        low = int.from_bytes(os.urandom(8), "little")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as victim:
            victim.bind(f"\0jitmem-executor-{HIGH:016x}{low:016x}")
            victim.listen(1)
            victim.settimeout(60)
            came = []

            def accept():
                connection, _ = victim.accept()
                with connection:
                    came.append(socket.recv_fds(connection, 100, 10)[:2])
                    # All that follows goes another way.
                    self.assertEqual(connection.recv(100), b"")

            for _ in range(TRIES):
                status, message = self.name_a_listener(low, accept)
                self.assertEqual(status, UNSUPPORTED)
                self.assertIn("the executor does not listen at the socket that it named", message)
            # A number of which the victim knows nothing, each time another one, and no descriptor.
            self.assertEqual({(len(said), len(along)) for said, along in came}, {(16, 0)})
            self.assertEqual(len({said for said, _ in came}), TRIES)

    def test_a_listener_whose_queue_is_full_is_not_waited_for(self):
        low = int.from_bytes(os.urandom(8), "little")
        name = f"\0jitmem-executor-{HIGH:016x}{low:016x}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as victim:
            victim.bind(name)
            victim.listen(0)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
                first.connect(name)
                status, message = self.name_a_listener(low, lambda: None)
                self.assertNotEqual(status, 0)
                self.assertIn("connect to the executor's socket: Resource temporarily unavailable", message)

    def test_a_listener_of_an_executor_that_does_not_answer_is_waited_for_as_long_as_set_up_may_take(self):
        low = int.from_bytes(os.urandom(8), "little")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"\0jitmem-executor-{HIGH:016x}{low:016x}")
            listener.listen(8)
            for silent in (LISTENING, ACCEPT):

                def answer(tag, body):
                    if tag == OPEN:
                        return opened()
                    return {
                        bytes([LISTENING]): b"\1" + u64(HIGH) + u64(low),
                        bytes([ACCEPT]): b"\1",
                        bytes([silent]): None,
                    }.get(body[8:9], b"\0" + u32(UNSUPPORTED) + string("no"))

                ours, theirs = socket.socketpair()
                theirs.sendall(setup())
                executor = Background(lambda: serve(theirs, answer))
                limits = Limits(ctypes.sizeof(Limits), set_up=500)
                controller = Controller(ours, ctypes.byref(limits))
                self.assertEqual(controller.shared(), TIMED_OUT)
                self.assertIn("set_up", controller.message)
                controller.free()
                executor.get()
                theirs.close()

    def test_who_connects_to_an_executor_first_gets_nothing(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
        program = os.path.join(os.environ["EXECUTOR_TEST_PREFIX"], "bin", "jitmem-executor")
        end = theirs.fileno()
        words = [program, "--seccomp=sealed", f"filedescs={end},{end}"]
        process = subprocess.Popen(words, pass_fds=[end])
        theirs.close()
        controller = Controller(ours)
        strangers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        for stranger, said in zip(strangers, (b"", b"open", os.urandom(16))):
            stranger.settimeout(60)
            stranger.connect(listener_of(process.pid))
            if said:
                stranger.send(said)
        self.assertEqual(controller.manager(), 0, controller.message)
        controller.free()
        self.assertEqual(process.wait(), 0)
        for stranger in strangers:
            try:
                self.assertEqual(stranger.recv(100), b"")
            except ConnectionResetError:
                pass  # what it had said was not read
            stranger.close()


class Replies(unittest.TestCase):
    def end(self, controller, executor):
        executor.close()
        controller.free()

    def test_a_million_replies_that_answer_nothing_end_the_session(self):
        nothing = b"".join(message(RESULT, number) for number in range(1000))
        for first in (False, True):
            controller, executor = connected()

            def flood():
                _, number, _, _ = read_message(executor.fileno())
                if first:
                    # The first reply is right, and comes a million times.
                    executor.sendall(message(RESULT, number, 0, b"x"))
                replies = message(RESULT, number) * 1000 if first else nothing
                try:
                    for _ in range(1000):
                        executor.sendall(replies)
                except OSError:
                    return "ended"

            reset_peak()
            before = peak()
            flooding = Background(flood)
            status, *_ = controller.call()
            if first:
                self.assertEqual(status, 0)
            self.assertEqual(flooding.get(), "ended")
            status, *_ = controller.call()
            self.assertEqual(status, DISCONNECTED)
            self.assertIn("the executor broke the protocol", controller.message)
            self.assertIn("No call for sequence number", controller.message)
            self.assertLess(peak() - before, 16 * MIB)
            self.end(controller, executor)

    def test_a_reply_that_is_too_large_costs_no_memory_and_fails_its_call_alone(self):
        controller, executor = connected()

        def answer():
            _, number, _, _ = read_message(executor.fileno())
            executor.sendall(message(RESULT, number, size=32 + 300 * MIB))
            for _ in range(300):
                executor.sendall(bytes(MIB))
            _, number, _, _ = read_message(executor.fileno())
            executor.sendall(message(RESULT, number, 0, b"x" * MIB))

        answering = Background(answer)
        reset_peak()
        before = peak()
        self.assertEqual(controller.call(), (MAPPER_FAILED,))
        self.assertIn("answered 314572800 bytes to a call whose answer may have 268435456", controller.message)
        self.assertEqual(controller.call(), (0, MIB))
        answering.get()
        self.assertLess(peak() - before, 32 * MIB)
        self.end(controller, executor)

    def test_calls_of_linked_code_are_answered_whatever_they_bring_along(self):
        controller, executor = connected()

        def ask():
            _, number, _, _ = read_message(executor.fileno())
            for call in range(100):
                executor.sendall(message(CALL, call, 1, bytes(10 * MIB)))
                self.assertEqual(read_message(executor.fileno()), (RESULT, call, 0, b""))
            executor.sendall(message(RESULT, number, 0, b"done"))

        asking = Background(ask)
        reset_peak()
        before = peak()
        self.assertEqual(controller.call(), (0, 4))
        asking.get()
        # What is sent here is this process's, too.
        self.assertLess(peak() - before, 32 * MIB)
        self.end(controller, executor)

    def test_half_a_reply_and_then_silence_is_waited_for_as_long_as_a_limit_says(self):
        for half in (16, 32, 40):
            ours, theirs = socket.socketpair()
            theirs.sendall(setup())
            limits = Limits(ctypes.sizeof(Limits), code=300, close=300)
            controller = Controller(ours, ctypes.byref(limits))

            def answer():
                _, number, _, _ = read_message(theirs.fileno())
                theirs.sendall(message(RESULT, number, 0, bytes(100))[:half])

            answering = Background(answer)
            self.assertEqual(controller.call(), (TIMED_OUT,))
            answering.get()
            controller.free()
            theirs.close()

    def test_a_reply_whose_rest_comes_later_is_a_reply(self):
        # An executor may be stopped at any byte of it.
        for half in (16, 32, 40):
            controller, executor = connected()

            def answer():
                _, number, _, _ = read_message(executor.fileno())
                reply = message(RESULT, number, 0, bytes(100))
                executor.sendall(reply[:half])
                while unread(executor):
                    pass
                executor.sendall(reply[half:])

            answering = Background(answer)
            self.assertEqual(controller.call(), (0, 100))
            answering.get()
            self.end(controller, executor)

    def test_a_session_that_breaks_the_protocol_ends_alone(self):
        ours, theirs = socket.socketpair()
        theirs.sendall(setup(TAKES_DESCRIPTORS))
        controller = Controller(ours)
        channels = []

        def attach_two():
            while len(channels) < 2:
                data, along, *_ = socket.recv_fds(theirs, 1 << 16, 1)
                _, _, number, tag = struct.unpack("<4Q", data[:32])
                if tag == ATTACH:
                    channels.append(socket.socket(fileno=along[0]))
                    channels[-1].send(data[32 + 8 + 1 + 8 + 8 :])
                theirs.sendall(message(RESULT, number, 0, opened() if tag == OPEN else b"\1"))

        attaching = Background(attach_two)
        mappers = [ctypes.c_void_p(), ctypes.c_void_p()]
        for mapper in mappers:
            make = LIBRARY.jitmem_mapper_shared
            self.assertEqual(controller.check(make, controller.transport, None, ctypes.byref(mapper)), 0)
        attaching.get()

        def answer(channel, other, body):
            _, _, number, _ = struct.unpack("<4Q", channel.recv(MIB)[:32])
            channel.send(message(RESULT, number + other, 0, body))

        refused = b"\0" + u32(UNSUPPORTED) + string("no such window")
        # One answers what the other might have asked, the other one what it was asked.
        for mapper, channel, other, expected in zip(mappers, channels, (1, 0), (DISCONNECTED, UNSUPPORTED)):
            answering = Background(lambda: answer(channel, other, refused))
            manager = ctypes.c_void_p()
            status = controller.check(LIBRARY.jitmem_manager_create, mapper, None, ctypes.byref(manager))
            self.assertEqual(status, expected, controller.message)
            answering.get()
        self.assertIn("no such window", controller.message)
        for channel in channels:
            channel.close()
        for mapper in mappers:
            LIBRARY.jitmem_mapper_free(mapper)
        controller.free()
        theirs.close()


class Descriptors(unittest.TestCase):
    """Descriptors of which the controller must take none: it can't get rid of a file whose file system, a process of
    the executor's, never answers, or of a socket that lingers."""

    # The kernel refuses none.
    OLDER_KERNEL = (sys.executable, "-B", "without.py", "passrights")

    def controller_told(self, where, kind, kernel=()):
        ours, theirs = socket.socketpair()
        executor = subprocess.Popen(
            [sys.executable, "-B", "hostile_files.py", str(theirs.fileno()), where, kind],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        sent = []
        while (line := executor.stdout.readline().strip()) != "ready":
            self.assertTrue(line, "it has not begun")
            sent.append(line)
        # One thread may wait for a socket that lies in one that has ended.
        left = "1" if kind == "linger" else "0"
        command = [*kernel, sys.executable, "-B", "controller_alone.py", str(ours.fileno()), left]
        told = subprocess.run(command, pass_fds=[ours.fileno()], stdout=subprocess.PIPE, text=True, timeout=60)
        ours.close()
        sent += executor.stdout.read().split()
        executor.stdout.close()
        executor.wait()
        self.assertEqual(told.returncode, 0)
        status, message = told.stdout.split(" ", 1)
        return int(status), message, sent

    def check(self, where, kind, kernels=((), OLDER_KERNEL)):
        for kernel in kernels:
            with self.subTest(where=where, kind=kind, kernel=kernel):
                status, message, sent = self.controller_told(where, kind, kernel)
                self.assertNotEqual(status, 0, message)
                if where == "greeting" or kernel:
                    self.assertEqual(set(sent), {"sent"})
                elif not refuses_descriptors():
                    self.skipTest("this kernel is older than Linux 6.16")
                else:
                    self.assertEqual(set(sent), {"refused"})
                if "sent" in sent and where != "token":
                    self.assertIn("descriptors, of which none is taken", message)

    def test_a_file_whose_file_system_never_answers(self):
        if not os.path.exists("/dev/fuse"):
            self.skipTest("there is no /dev/fuse")
        for where in ("greeting", "answer", "token", "channel"):
            self.check(where, "fuse")

    def test_a_socket_that_lingers(self):
        for where in ("greeting", "answer", "token", "channel"):
            self.check(where, "linger")

    def test_more_descriptors_than_are_read(self):
        for where in ("greeting", "channel"):
            self.check(where, "flood")

    def test_memory_and_other_files_in_a_channel(self):
        for kind in ("memfd", "sealed-memfd", "huge-memfd", "endless-memfd", "pipe", "folder", "proc", "path"):
            self.check("channel", kind, [self.OLDER_KERNEL])


if __name__ == "__main__":
    unittest.main()
