# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Memory for JIT-linked code, in this process or in another one.

    import ctypes, jitmem

    with jitmem.Manager() as manager:
        code = bytes.fromhex("8d0437c3")  # x86-64: lea eax, [rdi + rsi]; ret
        allocation = manager.link((jitmem.READ_EXEC, code))
        add = allocation.function(ctypes.c_int, ctypes.c_int, ctypes.c_int)
        print(add(40, 2))

The library is what JITMEM_LIBRARY names, else the wheel's, else the system's. Its errors are raised as :class:`Error`.
"""

from ._abi import (
    CodeHint,
    Growth,
    InProcess,
    LayoutKind,
    Lifetime,
    MapperKind,
    Phase,
    Placement,
    Protection,
    Status,
    WindowSize,
)
from ._library import Error, executor_program, version
from ._version import __version__
from .executor import End, Executor
from .layout import LayoutItem, Location, Stats, lookup
from .manager import Action, Allocation, InFlight, Manager, Segment, WrapperCall

READ = Protection.READ
READ_WRITE = Protection.READ | Protection.WRITE
READ_EXEC = Protection.READ | Protection.EXEC

__all__ = [
    "Action",
    "Allocation",
    "CodeHint",
    "End",
    "Error",
    "Executor",
    "Growth",
    "InFlight",
    "InProcess",
    "LayoutItem",
    "LayoutKind",
    "Lifetime",
    "Location",
    "Manager",
    "MapperKind",
    "Phase",
    "Placement",
    "Protection",
    "READ",
    "READ_EXEC",
    "READ_WRITE",
    "Segment",
    "Stats",
    "Status",
    "WindowSize",
    "WrapperCall",
    "__version__",
    "executor_program",
    "lookup",
    "version",
]
