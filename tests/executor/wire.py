# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A controller in Python: EPC's messages and SPS, over the descriptors of an executor program."""

import os
import struct
import subprocess
import threading

SETUP, HANGUP, RESULT, CALL = range(4)


# ---- simple packed serialization ----

def u8(value):
    return struct.pack("<B", value)


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def sequence(elements):
    elements = list(elements)
    return u64(len(elements)) + b"".join(elements)


def call(function=0, args=b""):
    return u64(function) + string(args)


def pair(finalize=b"", dealloc=b""):
    return (finalize or call()) + (dealloc or call())


class Reader:
    """Takes values off the front of bytes."""

    def __init__(self, data):
        self.data = data
        self.offset = 0

    def take(self, size):
        if self.offset + size > len(self.data):
            raise ValueError("the bytes end inside a value")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def u8(self):
        return self.take(1)[0]

    def u32(self):
        return struct.unpack("<I", self.take(4))[0]

    def u64(self):
        return struct.unpack("<Q", self.take(8))[0]

    def i64(self):
        return struct.unpack("<q", self.take(8))[0]

    def bytes(self):
        return self.take(self.u64())

    def string(self):
        return self.bytes().decode()

    def sequence(self, element):
        return [element() for _ in range(self.u64())]

    def error(self):
        """`SPSError`: None, or the message."""
        return self.string() if self.u8() else None

    def expected(self, value):
        """`SPSExpected`: raises `Failed` for an error."""
        if self.u8():
            return value()
        raise Failed(self.string())

    def optional(self, value):
        return value() if self.u8() else None

    def definition(self):
        return self.u64(), self.u8(), self.u8()


class Failed(Exception):
    """An error that the executor answered."""


# ---- messages ----

def message(opcode, number=0, tag=0, body=b"", size=None):
    size = 32 + len(body) if size is None else size
    return struct.pack("<4Q", size, opcode, number, tag) + body


class Ended(Exception):
    """The executor has closed its end."""


def read_exactly(descriptor, size):
    data = bytearray()
    while len(data) < size:
        part = os.read(descriptor, min(size - len(data), 1 << 20))
        if not part:
            raise Ended(f"after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def read_message(descriptor):
    size, opcode, number, tag = struct.unpack("<4Q", read_exactly(descriptor, 32))
    return opcode, number, tag, read_exactly(descriptor, size - 32)


class Setup:
    """What an executor introduces itself with."""

    def __init__(self, body, with_map):
        reader = Reader(body)
        self.triple = reader.string()
        self.page_size = reader.u64()
        self.map = {}
        if with_map:
            self.map = dict(reader.sequence(lambda: (reader.string(), reader.bytes())))
        self.symbols = dict(reader.sequence(lambda: (reader.string(), reader.u64())))
        self.rest = len(body) - reader.offset


class Session:
    """An executor program and our end of its descriptors."""

    def __init__(
        self, command, llvm=22, environment=None, blocking=True, stderr=subprocess.PIPE, **options
    ):
        to_read, self.output = os.pipe()
        self.input, to_write = os.pipe()
        os.set_blocking(to_read, blocking)
        os.set_blocking(to_write, blocking)
        version = {"EXECUTOR_LLVM": str(llvm), "JITMEM_EXECUTOR_LLVM": str(llvm)}
        environment = dict(os.environ, **version, **(environment or {}))
        self.process = subprocess.Popen(
            [*command, f"filedescs={to_read},{to_write}"],
            pass_fds=(to_read, to_write),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            **options,
        )
        os.close(to_read)
        os.close(to_write)
        self.llvm = llvm
        self.number = 0
        opcode, number, tag, body = self.receive()
        assert (opcode, number, tag) == (SETUP, 0, 0), "the first message is no Setup"
        self.setup = Setup(body, llvm > 16)
        self.symbols = self.setup.symbols

    def send(self, data):
        view = memoryview(data)
        while view:
            view = view[os.write(self.output, view) :]

    def receive(self):
        return read_message(self.input)

    def address(self, function):
        return self.symbols[function] if isinstance(function, str) else function

    def start(self, function, args=b""):
        number = self.number
        self.number += 1
        self.send(message(CALL, number, self.address(function), args))
        return number

    def result(self, number):
        opcode, answered, tag, body = self.receive()
        assert (opcode, answered, tag) == (RESULT, number, 0), (opcode, answered, tag)
        return body

    def call(self, function, args=b""):
        """Calls and gives the answer's bytes."""
        return self.result(self.start(function, args))

    def ask(self, function, args=b""):
        return Reader(self.call(function, args))

    def hang_up(self):
        for descriptor in (self.output, self.input):
            if descriptor is not None:
                os.close(descriptor)
        self.output = self.input = None

    def finish(self, timeout=60):
        """Hangs up, and gives the exit code and what the program wrote to stdout and stderr."""
        self.hang_up()
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, out.decode(), err.decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hang_up()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Background(threading.Thread):
    """Runs a function, and raises in `get` what it raised."""

    def __init__(self, function):
        super().__init__(daemon=True)
        self.function = function
        self.value = None
        self.error = None
        self.start()

    def run(self):
        try:
            self.value = self.function()
        except BaseException as error:  # raised where the answer is asked for
            self.error = error

    def get(self, timeout=60):
        self.join(timeout)
        if self.is_alive():
            raise TimeoutError("it does not end")
        if self.error:
            raise self.error
        return self.value
