# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Executors: processes that run linked code, and end without this one."""

from __future__ import annotations

import ctypes
import signal
import socket
import struct
import subprocess
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import Optional, Sequence, Type, Union

from . import _abi
from ._library import LIBRARY, call, executor_program

_RUN_INT = "__llvm_orc_bootstrap_run_as_int_function_wrapper"


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

    ``options`` are the program's, such as ``--seccomp=confined``; ``program`` is another path of it. Managers of an executor are
    closed before it is.
    """

    def __init__(self, options: Sequence[str] = (), program: Optional[str] = None) -> None:
        #: The C API's handle, for functions that this package does not have.
        self.transport = c_void_p()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [program or executor_program(), *options, f"filedescs={theirs.fileno()},{theirs.fileno()}"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            theirs.close()
            try:
                call("jitmem_transport_socket", ours.fileno(), byref(self.transport))
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
            ours.detach()  # the transport's from here

    def symbol(self, name: str) -> int:
        """The address that the executor published under a name."""
        address = c_uint64()
        call("jitmem_transport_symbol", self.transport, name.encode(), byref(address))
        return address.value

    def call(self, function: Union[int, str], args: bytes = b"") -> bytes:
        """Calls a wrapper function, by address or published name, with serialized arguments; answers its result."""
        address = self.symbol(function) if isinstance(function, str) else function
        answers = []
        take = _abi.BYTES_FN(lambda _, data, size: answers.append(ctypes.string_at(data, size) if size else b""))
        call("jitmem_transport_call", self.transport, address, args, len(args), take, None)
        return answers[0]

    def run(self, function: int, argument: int) -> int:
        """Calls ``int32_t function(int32_t)``. Raises :class:`jitmem.Error` if the executor ends meanwhile."""
        return int.from_bytes(self.call(_RUN_INT, struct.pack("<Qi", function, argument)), "little", signed=True)

    def close(self) -> End:
        """Ends the connection, waits for the executor's end and answers how that was."""
        transport, self.transport = self.transport, c_void_p()
        LIBRARY.jitmem_transport_free(transport)
        code = self.process.wait()
        return End(code, None) if code >= 0 else End(None, signal.Signals(-code))

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
