# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Executors: processes that run linked code, and end without this one."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import time
import weakref
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Sequence, Type, Union

from . import _abi
from ._library import LIBRARY, Error, call, executor_program
from ._uses import Collector, Uses

if TYPE_CHECKING:
    from .manager import Manager

_RUN_INT = "__llvm_orc_bootstrap_run_as_int_function_wrapper"
# What the system says where there is no program, and not where it has no room for a process.
_NO_PROGRAM = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENOEXEC)
# Seconds for the calls of other threads once the block of an executor is left by an exception.
_PATIENCE = 10.0


def _left(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@dataclass(frozen=True)
class End:
    """How an executor ended: an exit code, or else the signal that ended it."""

    code: Optional[int]
    signal: Optional[signal.Signals]

    def __str__(self) -> str:
        if self.signal is None:
            return f"the executor ended with {self.code}"
        return f"the executor was ended by {self.signal.name}"


class Executor:
    """A jitmem-executor and the connection to it.

    ``options`` are the program's, such as ``--seccomp=confined``; ``program`` is another path of it. Safe to use from any
    thread.
    """

    def __init__(self, options: Sequence[str] = (), program: Optional[str] = None) -> None:
        #: The C API's handle, for functions that this package does not have.
        self.transport = c_void_p()
        self._made = self.transport
        #: Those that are open.
        self.managers: "weakref.WeakSet[Manager]" = weakref.WeakSet()
        self._uses = Uses()
        self._maker = os.getpid()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [program or executor_program(), *options, f"filedescs={theirs.fileno()},{theirs.fileno()}"]
            try:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            except OSError as error:
                advice = ": install jitmem-executor, set JITMEM_EXECUTOR to it, or pass program="
                why = f"start an executor: {error.strerror}{advice if error.errno in _NO_PROGRAM else ''}"
                raise type(error)(error.errno, why, command[0]) from None
            theirs.close()
            try:
                call("jitmem_transport_socket", ours.fileno(), byref(self.transport))
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
            ours.detach()  # the transport's from here

    def use(self, name: str, *arguments: Any) -> None:
        """Calls a function of the C API with the transport as its first argument; raises :class:`jitmem.Error` if it fails."""
        with self._uses:
            if not self.transport:
                raise Error(_abi.Status.INVALID_HANDLE, f"{name}: the executor is closed: make another one", 0)
            call(name, self.transport, *arguments)

    def wait_for_calls(self, timeout: Optional[float] = None) -> bool:
        """Waits until no call is under way; answers whether that came within ``timeout`` seconds."""
        return self._uses.wait_for_end(timeout)

    def symbol(self, name: str) -> int:
        """The address that the executor published under a name."""
        address = c_uint64()
        self.use("jitmem_transport_symbol", _abi.c_name("a symbol of the executor", name), byref(address))
        return address.value

    def call(self, function: Union[int, str], args: bytes = b"") -> bytes:
        """Calls a wrapper function, by address or published name, with serialized arguments; answers its result."""
        address = self.symbol(function) if isinstance(function, str) else function
        answers = Collector(_abi.BYTES_FN, lambda data, size: ctypes.string_at(data, size) if size else b"")
        self.use("jitmem_transport_call", address, args, len(args), answers.function, None)
        return answers.results()[0]

    def run(self, function: int, argument: int) -> int:
        """Calls ``int32_t function(int32_t)``. Raises :class:`jitmem.Error` if the executor ends meanwhile, OverflowError
        for a number that is none of these."""
        _abi.check_number("the address of a function", function, 2**64 - 1)
        _abi.check_number("the argument of a function", argument, 2**31 - 1, -(2**31))
        return int.from_bytes(self.call(_RUN_INT, struct.pack("<Qi", function, argument)), "little", signed=True)

    def close(self, timeout: Optional[float] = None) -> End:
        """Closes its managers, ends the connection, waits for the executor's end and answers how that was.

        Calls of other threads are waited for; after ``timeout`` seconds the executor is killed, and they fail.
        """
        if os.getpid() != self._maker:
            raise RuntimeError("the executor is the parent's: close it in the process that made it")
        deadline = None if timeout is None else time.monotonic() + timeout
        self.transport = c_void_p()
        managers = list(self.managers)
        all_calls = [self.wait_for_calls, *(manager.wait_for_calls for manager in managers)]
        if not all(wait(_left(deadline)) for wait in all_calls):
            self.process.kill()
        for manager in managers:
            manager.close()
        self.wait_for_calls()
        # Only now: a close that Ctrl-C has ended while it waited can be called again.
        transport, self._made = self._made, c_void_p()
        LIBRARY.jitmem_transport_free(transport)
        try:
            code = self.process.wait(_left(deadline))
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return End(code, None) if code >= 0 else End(None, signal.Signals(-code))

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        # An error is to be seen, whatever other threads wait for.
        self.close(None if kind is None else _PATIENCE)
