# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Sessions with our executor, and what most tests ask it for."""

import unittest

import programs
from wire import Session, sequence, string, u8, u64

EXECUTOR = programs.PROGRAM

MANAGER = "__llvm_orc_SimpleExecutorMemoryManager"
MAPPER = "__llvm_orc_ExecutorSharedMemoryMapperService"
DYLIBS = "__llvm_orc_SimpleExecutorDylibManager"
MEMORY = "__llvm_orc_bootstrap_mem"
RUN = "__llvm_orc_bootstrap_run_as"
READ = MEMORY + "_read_uint8s_wrapper"
NOTHING = sequence([])

R, RW, RX = 1, 3, 5


def start(llvm=22, options=(), **started):
    """`options` are the program's."""
    return Session([EXECUTOR, *options], llvm, **started)


def library(session, path=""):
    """A library's handle; without a path, the process's."""
    if not hasattr(session, "libraries"):
        session.libraries = {}
    if path not in session.libraries:
        request = u64(session.symbols[DYLIBS + "_Instance"]) + string(path) + u64(0)
        answer = session.ask(DYLIBS + "_open_wrapper", request)
        session.libraries[path] = answer.expected(answer.u64)
    return session.libraries[path]


def resolve(session, name, path=""):
    """Where a function of the executor's process, or of a library, is."""
    request = u64(library(session, path)) + sequence([string(name) + u8(1)])
    if session.llvm == 22:
        answer = session.ask(DYLIBS + "_resolve_wrapper", request)
        found = answer.expected(lambda: answer.sequence(lambda: answer.optional(answer.definition)))
        return found[0][0] if found[0] else None
    instance = u64(session.symbols[DYLIBS + "_Instance"])
    answer = session.ask(DYLIBS + "_lookup_wrapper", instance + request)
    element = answer.u64 if session.llvm <= 16 else lambda: answer.definition()[0]
    return answer.expected(lambda: answer.sequence(element))[0]


def wrapper(session, name):
    """A function of `wrappers.c`."""
    return resolve(session, name, *programs.objects("libwrappers.so"))


def controller(session, tag):
    """The arguments with which `wrappers.c` calls the controller."""
    name = "__llvm_orc_SimpleRemoteEPC_dispatch_"
    return u64(session.symbols[name + "fn"]) + u64(session.symbols[name + "ctx"]) + u64(tag)


def reserve(session, size):
    answer = session.ask(
        MANAGER + "_reserve_wrapper", u64(session.symbols[MANAGER + "_Instance"]) + u64(size)
    )
    return answer.expected(answer.u64)


def initialize(session, segments, actions=()):
    """Segments are (protection, address, size, content)."""
    wire = sequence(u8(group) + u64(at) + u64(size) + string(data) for group, at, size, data in segments)
    request = u64(session.symbols[MANAGER + "_Instance"]) + wire + sequence(actions)
    answer = session.ask(MANAGER + "_initialize_wrapper", request)
    return answer.expected(answer.u64)


def load(session, code):
    """Puts machine code (x86-64) into the executor, and gives its address."""
    base = reserve(session, len(code))
    return initialize(session, [(RX, base, len(code), code)])


def movabs(register, value):
    return bytes([0x48, 0xB8 + register]) + u64(value)


RAX, RDX, RCX, RSI, RDI = 0, 2, 1, 6, 7


def dispatching(session, tag):
    """A wrapper function that has the controller answer."""
    return load(
        session,
        bytes.fromhex("4889fa 4889f1")  # mov rdx, rdi; mov rcx, rsi
        + movabs(RDI, session.symbols["__llvm_orc_SimpleRemoteEPC_dispatch_ctx"])
        + movabs(RSI, tag)
        + movabs(RAX, session.symbols["__llvm_orc_SimpleRemoteEPC_dispatch_fn"])
        + bytes.fromhex("4883ec08 ffd0 4883c408 c3"),  # sub rsp, 8; call rax; add rsp, 8; ret
    )


def putting(session):
    """A wrapper function that writes its argument, a string, to stdout, and succeeds."""
    return load(
        session,
        bytes.fromhex("4883ec08")
        + movabs(RAX, resolve(session, "puts"))
        + bytes.fromhex("ffd0 31c0 ba01000000 4883c408 c3"),  # call; xor eax, eax; mov edx, 1
    )


class Case(unittest.TestCase):
    maxDiff = None

    def assertEnds(self, session, code, error=""):
        found, _, err = session.finish()
        expected = f"{EXECUTOR}: {error}\n" if error else ""
        self.assertEqual((found, err), (code, expected))
