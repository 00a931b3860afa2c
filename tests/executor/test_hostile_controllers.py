# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Controllers that ask jitmem's service of the installed program for what it must not do, byte by byte."""

import fcntl
import os
import socket
import struct
import subprocess

from sessions import EXECUTOR, R, RW, RX, Case
from wire import CALL, HANGUP, RESULT, SETUP, Reader, Setup, message, read_message, sequence, string, u8, u32, u64

VERSION = 6
PAGE = os.sysconf("SC_PAGE_SIZE")
WINDOW = 64 * PAGE
# Entries of four bytes: one for each page of 4096 bytes and for each granule of 16.
INDEX_SIZE = -(-4 * (WINDOW // 4096 + WINDOW // 16) // PAGE) * PAGE
INVALID_ARGUMENT = 1
SO_COOKIE = 57
MAP, MAP_FILE, MAP_OWN, UNMAP, RELEASE, REPLACE, REPLACE_FILE, KEEP, INDEX, INDEX_FILE = range(10)
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE = 1, 2, 4, 16


class Refused(Exception):
    def __init__(self, status, words):
        super().__init__(f"{status}: {words}")
        self.status = status
        self.words = words


def reply(reader, value=lambda: None):
    """A value, or raises `Refused`."""
    if reader.u8():
        return value()
    raise Refused(reader.u32(), reader.string())


def memfd(size, seals=F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL, flags=0):
    file = os.memfd_create("hostile", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC | flags)
    os.ftruncate(file, size)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def step(kind, first, last, *rest):
    return u8(kind) + u64(first) + u64(last) + b"".join(rest)


class Controller:
    """A session with the service, and its channel."""

    def __init__(self):
        self.socket, theirs = socket.socketpair()
        number = theirs.fileno()
        self.process = subprocess.Popen(
            [EXECUTOR, f"filedescs={number},{number}"], pass_fds=(number,), stderr=subprocess.PIPE
        )
        theirs.close()
        opcode, _, _, body = read_message(self.socket.fileno())
        assert opcode == SETUP
        self.symbols = Setup(body, True).symbols
        opened = self.ask(self.symbols["jitmem_service_open"], u32(VERSION) + u64(0))
        self.session, page, _, *functions = reply(
            opened, lambda: (opened.u64(), opened.u64(), opened.u8(), *[opened.u64() for _ in range(5)])
        )
        # What stands for registering frames follows.
        assert page == PAGE
        self.attach, self.reserve_at, self.change_at, self.apply_at, self.close_at = functions
        # The channel goes along with the call.
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cookie = theirs.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        attach = u64(self.session) + u8(2) + cookie + string("token")
        attached = self.ask(self.attach, attach, [theirs.fileno()])
        theirs.close()
        reply(attached)
        assert self.channel.recv(64) == b"token"

    def ask(self, function, args, files=()):
        socket.send_fds(self.socket, [message(CALL, 1, function, args)], files)
        opcode, number, _, body = read_message(self.socket.fileno())
        assert (opcode, number) == (RESULT, 1)
        return Reader(body)

    def ask_by_channel(self, function, args, files=()):
        socket.send_fds(self.channel, [message(CALL, 2, function, u64(self.session) + args)], files)
        packet = self.channel.recv(1 << 16)
        _, opcode, number, _ = struct.unpack("<4Q", packet[:32])
        assert (opcode, number) == (RESULT, 2)
        return Reader(packet[32:])

    def reserve(self, size, least=None, at=u8(0)):
        answer = self.ask_by_channel(self.reserve_at, u64(size) + u64(least or size) + at)
        return reply(answer, lambda: (answer.u64(), answer.u64()))

    def change(self, *steps, files=()):
        """The outcome of each: None, or what it was refused with."""
        answer = self.ask_by_channel(self.change_at, sequence(steps), files)

        def outcome():
            try:
                reply(answer)
            except Refused as refused:
                return refused

        return reply(answer, lambda: answer.sequence(outcome))

    def initialize(self, first, last, content, zeroed=1, code=()):
        written = u64(first) + u64(last) + u8(zeroed) + string(content)
        flushed = sequence(u64(start) + u64(end) for start, end in code)
        item = u8(0) + sequence([written]) + flushed + sequence([])
        answer = self.ask_by_channel(self.apply_at, sequence([item]))
        return reply(answer, lambda: answer.sequence(lambda: reply(answer, answer.u64)))

    def deinitialize(self, key, *traps):
        item = u8(1) + u64(key) + sequence(u64(first) + u64(last) for first, last in traps)
        answer = self.ask_by_channel(self.apply_at, sequence([item]))
        return reply(answer, lambda: answer.sequence(lambda: reply(answer, answer.u64)))

    def close(self):
        self.socket.sendall(message(HANGUP, body=b"\0"))
        self.channel.close()
        self.socket.close()
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors.decode()


class HostileSteps(Case):
    """One window has a chunk of each kind; each step that is refused leaves it as it was."""

    def setUp(self):
        self.controller = Controller()
        self.base, last = self.controller.reserve(WINDOW)
        self.assertEqual(last - self.base, WINDOW)
        self.code, self.own, self.data = (self.part(first, 4) for first in (0, 8, 16))
        file = memfd(4 * PAGE)
        done = self.controller.change(
            step(MAP, *self.code, u8(RX)),
            step(MAP_OWN, *self.own, u8(RX), u8(0)),
            step(MAP_OWN, *self.data, u8(RW), u8(0)),
            files=[file],
        )
        os.close(file)
        self.assertEqual(done, [None] * 3)
        self.controller.initialize(*self.own, b"\xc3" * 100)
        self.controller.initialize(*self.data, b"data" * 25)
        self.before = self.state()

    def tearDown(self):
        self.assertEqual(self.state(), self.before)
        code, errors = self.controller.close()
        self.assertEqual((code, errors), (0, ""))

    def part(self, first, pages):
        return self.base + first * PAGE, self.base + (first + pages) * PAGE

    def state(self):
        """What is mapped around the window, and what is in its chunks."""
        found = []
        process = self.controller.process.pid
        with open(f"/proc/{process}/maps") as maps:
            for line in maps:
                first, last = (int(number, 16) for number in line.split()[0].split("-"))
                if first < self.base + WINDOW and last > self.base:
                    found.append(line)
        with open(f"/proc/{process}/mem", "rb") as memory:
            for first, last in (self.code, self.own, self.data):
                memory.seek(first)
                found.append(memory.read(last - first).rstrip(b"\0"))
        return found

    def refuse(self, what, words, files=(), status=INVALID_ARGUMENT):
        [outcome] = self.controller.change(what, files=files)
        self.assertIsNotNone(outcome, words)
        self.assertIn(words, outcome.words)
        self.assertEqual(outcome.status, status, outcome)
        self.assertEqual(self.state(), self.before, words)

    def test_ranges_that_are_none_or_lie_elsewhere(self):
        first, last = self.part(32, 2)
        with open(f"/proc/{self.controller.process.pid}/maps") as maps:
            program = int(maps.readline().split("-")[0], 16)
        for range_, words in (
            ((first, first), "is no range of addresses"),
            ((first, (1 << 64) - PAGE), "lies in no window"),
            ((first, self.base + WINDOW + PAGE), "lies in no window"),
            ((self.base - PAGE, first), "lies in no window"),
            ((0, PAGE), "lies in no window"),
            ((program, program + PAGE), "lies in no window"),
        ):
            self.refuse(step(MAP_OWN, *range_, u8(RW), u8(0)), words)
            self.refuse(step(UNMAP, *range_), words)
            self.refuse(step(KEEP, *range_, sequence([u64(1)])), words)
        self.refuse(step(RELEASE, *self.part(0, 32)), "no window is reserved at")
        self.refuse(step(MAP_OWN, first + 1, last, u8(RW), u8(0)), "does not consist of pages")
        self.refuse(step(MAP_OWN, first, last - 1, u8(RW), u8(0)), "does not consist of pages")

    def test_chunks_that_overlap(self):
        for chunk in (self.code, self.own, self.data):
            for first, last in (chunk, (chunk[0] + PAGE, chunk[1]), (chunk[1] - PAGE, chunk[1] + PAGE)):
                self.refuse(step(MAP_OWN, first, last, u8(RW), u8(0)), "overlaps the chunk at")
                file = memfd(last - first)
                self.refuse(step(MAP, first, last, u8(RX)), "overlaps the chunk at", [file])
                os.close(file)

    def test_parts_of_chunks_are_no_chunks(self):
        inner = (self.code[0], self.code[1] - PAGE)
        self.refuse(step(UNMAP, *inner), "no chunk is at")
        self.refuse(step(UNMAP, self.code[0] + PAGE, self.code[1]), "no chunk is at")
        self.refuse(step(KEEP, self.own[0], self.own[1] - PAGE, sequence([u64(1)])), "no chunk is at")
        file = memfd(3 * PAGE)
        self.refuse(step(REPLACE, *inner), "no chunk is at", [file])
        os.close(file)

    def test_protections_that_are_none(self):
        where = self.part(32, 2)
        for protection, words in ((6, "writable and executable"), (7, "writable and executable"), (8, "0x8"), (0xFF, "0xff")):
            self.refuse(step(MAP_OWN, *where, u8(protection), u8(0)), words)
            file = memfd(2 * PAGE)
            self.refuse(step(MAP, *where, u8(protection)), words, [file])
            os.close(file)

    def test_memfds_that_lie(self):
        where = self.part(32, 4)
        small, open_, null = memfd(2 * PAGE), memfd(4 * PAGE, 0), os.open("/dev/zero", os.O_RDONLY)
        # Its pages are larger than the chunk.
        huge, folder = memfd(2 << 20, flags=os.MFD_HUGETLB), os.open("/", os.O_RDONLY)
        files = (small, open_, null, huge, folder)
        for kind, chunk, protection in ((MAP, where, u8(RX)), (MAP, where, u8(R)), (REPLACE, self.code, b"")):
            for file in files:
                [outcome] = self.controller.change(step(kind, *chunk, protection), files=[file])
                self.assertIsNotNone(outcome, (kind, file))
                self.assertEqual(self.state(), self.before)
            self.refuse(step(kind, *chunk, protection), "the message carried too few")
        for file in files:
            os.close(file)

    def test_what_may_be_replaced_is_constant_and_foreign(self):
        file = memfd(4 * PAGE)
        for chunk in (self.own, self.data):
            self.refuse(step(REPLACE, *chunk), "it has none of constant content", [file])
        self.refuse(step(REPLACE, *self.part(32, 4)), "no chunk is at", [file])
        os.close(file)

    def test_what_may_be_kept_is_the_executors_own_and_named_whole(self):
        self.refuse(step(KEEP, *self.code, sequence([u64(0)])), "they are not the executor's own")
        self.refuse(step(KEEP, *self.own, sequence([])), "not all of them were named")
        self.refuse(step(KEEP, *self.part(32, 4), sequence([u64(0)])), "no chunk is at")

    def test_files_of_other_processes_are_not_opened(self):
        other = os.open(__file__, os.O_RDONLY)
        identity = os.fstat(other)
        file = u32(os.getpid()) + u32(other) + u64(identity.st_dev) + u64(identity.st_ino)
        for what in (step(MAP_FILE, *self.part(32, 1), u8(RX), file), step(REPLACE_FILE, *self.code, file)):
            [outcome] = self.controller.change(what)
            self.assertIsNotNone(outcome)
            self.assertEqual(self.state(), self.before)
        os.close(other)
        # Nor as what the unwinder reads.
        [outcome] = self.controller.change(step(INDEX_FILE, self.base, self.base + WINDOW, file))
        self.assertIsNotNone(outcome)

    def test_indexes_of_frames_that_lie(self):
        window = (self.base, self.base + WINDOW)
        right = memfd(INDEX_SIZE)
        for range_, words in (
            ((self.base, self.base + WINDOW - PAGE), "no window is reserved at"),
            ((self.base, self.base + WINDOW + PAGE), "no window is reserved at"),
            (self.code, "no window is reserved at"),
            ((0, WINDOW), "no window is reserved at"),
            ((self.base, self.base), "is no range of addresses"),
        ):
            self.refuse(step(INDEX, *range_), words, [right])
        null, folder = os.open("/dev/zero", os.O_RDWR), os.open("/", os.O_RDONLY)
        small, open_ = memfd(INDEX_SIZE - PAGE), memfd(INDEX_SIZE, 0)
        for file in (small, open_, null, folder):
            [outcome] = self.controller.change(step(INDEX, *window), files=[file])
            self.assertIsNotNone(outcome, file)
            self.assertEqual(self.state(), self.before)
        self.refuse(step(INDEX, *window), "the message carried too few")
        # One that is right comes with a descriptor too many, and then again.
        descriptors = f"/proc/{self.controller.process.pid}/fd"
        before = os.listdir(descriptors)
        self.assertEqual(self.controller.change(step(INDEX, *window), files=[right, small]), [None])
        self.assertEqual(os.listdir(descriptors), before)
        self.refuse(step(INDEX, *window), "has an index", [right])
        for file in (right, small, open_, null, folder):
            os.close(file)

    def test_content_that_does_not_fit_or_belongs_elsewhere(self):
        first, last = self.own
        for range_, content, words in (
            ((first, first + 4), b"12345678", "8 bytes of content for a segment of 4"),
            ((last - 8, last + 8), b"x", "in no chunk of the executor's own pages"),
            (self.code, b"x", "in no chunk of the executor's own pages"),
            (self.part(32, 1), b"x", "in no chunk of the executor's own pages"),
            ((0, 16), b"x", "lies in no window"),
            ((last, first), b"x", "an address range ends before it starts"),
        ):
            with self.assertRaises(Refused) as raised:
                self.controller.initialize(*range_, content)
            self.assertIn(words, raised.exception.words)
            # Code that was not initialized must not run, so there are traps now.
            if range_ == (first, first + 4):
                self.controller.initialize(*range_, b"\xc3" * 4)
            self.assertEqual(self.state(), self.before)

    def test_traps_and_flushes_elsewhere(self):
        for range_ in ((0, 16), self.part(70, 1), (self.own[1], self.own[0])):
            with self.assertRaises(Refused):
                self.controller.deinitialize(0, range_)
            with self.assertRaises(Refused):
                self.controller.initialize(*self.own, b"\xc3" * 100, code=[range_])
            self.controller.initialize(*self.own, b"\xc3" * 100, zeroed=0)
        for key in (1, 1 << 63, (1 << 64) - 1):
            with self.assertRaises(Refused):
                self.controller.deinitialize(key)

    def test_windows_that_can_not_be(self):
        for size, least in ((0, 0), (PAGE + 1, 0), (1 << 31, 0), ((1 << 64) - PAGE, 0), (PAGE, 2 * PAGE)):
            with self.assertRaises(Refused) as raised:
                answer = self.controller.ask_by_channel(
                    self.controller.reserve_at, u64(size) + u64(least) + u8(0)
                )
                reply(answer, answer.u64)
            self.assertEqual(raised.exception.status, INVALID_ARGUMENT)
        # A window that lies on another, or on what the process has.
        for address in (self.base, self.base + PAGE, 0):
            with self.assertRaises(Refused):
                self.controller.reserve(WINDOW, WINDOW, u8(2) + u64(address))

    def test_sessions_of_others_are_none(self):
        mine = self.controller.session
        for session in (0, mine + 1, (1 << 64) - 1):
            self.controller.session = session
            with self.assertRaises(Refused) as raised:
                self.controller.change(step(UNMAP, *self.code))
            self.assertIn(f"no session {session}", raised.exception.words)
        self.controller.session = mine

    def test_counts_that_are_lies(self):
        where = self.part(32, 1)
        for args in (
            u64(1 << 63),
            u64(2) + step(UNMAP, *where),
            u64(1) + step(UNMAP, *reversed(where)),
            u64(1) + u8(8),
            u64(1) + u8(MAP),
        ):
            with self.assertRaises(Refused) as raised:
                answer = self.controller.ask_by_channel(self.controller.change_at, args)
                reply(answer)
            self.assertIn("malformed arguments", raised.exception.words)
            self.assertEqual(raised.exception.status, INVALID_ARGUMENT)
