# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Finds and loads libjitmem.so, and makes exceptions of its errors."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from . import _abi
from ._version import __version__

_HERE = Path(__file__).parent
# Before 1.0 each minor version has an ABI of its own.
_ABI = __version__.rpartition(".")[0]
_SYSTEM = "libjitmem.so." + _ABI


class Error(Exception):
    """What the library refused, in its own words: operation, value, cause, remedy.

    ``status`` says which kind of failure it is, ``os_code`` is the errno behind it, or 0.
    """

    def __init__(self, status: int, message: str, os_code: int) -> None:
        super().__init__(message)
        try:
            self.status: int = _abi.Status(status)
        except ValueError:  # one that a later library has
            self.status = status
        self.os_code = os_code


def _load() -> ctypes.CDLL:
    named, bundled = os.environ.get("JITMEM_LIBRARY"), _HERE / "lib" / "libjitmem.so"
    path = named or (str(bundled) if bundled.exists() else _SYSTEM)
    try:
        library = ctypes.CDLL(path)
        _check_abi(library)
        _declare(library)
    except OSError as error:
        why = str(error)
    except AttributeError as error:  # what ctypes says of a name that is not there
        why = f"{path}: no libjitmem.so, or one that is older than this package: {error}"
    except ValueError as error:
        why = f"{path}: {error}"
    else:
        return library
    raise ImportError(f"load jitmem: {why}: install jitmem {_ABI}, or set JITMEM_LIBRARY to its libjitmem.so")


def _check_abi(library: ctypes.CDLL) -> None:
    """Raises ValueError for a library of another ABI, whose functions may take something else."""
    library.jitmem_version.restype = ctypes.c_uint32
    number: int = library.jitmem_version()
    abi = f"{number >> 16}.{number >> 8 & 0xFF}"
    if abi != _ABI:
        raise ValueError(f"the library is jitmem {abi}.{number & 0xFF}, and this package is for the ABI of {_ABI}")


def _declare(library: ctypes.CDLL) -> None:
    for name, arguments in _abi.FALLIBLE.items():
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_uint32, [*arguments, ctypes.POINTER(ctypes.c_void_p)]
    for name, (result, arguments) in _abi.INFALLIBLE.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


LIBRARY = _load()
# Which arguments of a function are numbers, and the most that each can be.
_NUMBERS = {
    name: [(place, _abi.MOST[kind]) for place, kind in enumerate(arguments) if kind in _abi.MOST]
    for name, arguments in _abi.FALLIBLE.items()
}


def call(name: str, *arguments: Any) -> None:
    """Calls a function that can fail; raises :class:`Error` if it does. Other threads run meanwhile."""
    for place, most in _NUMBERS.get(name, ()):
        _abi.check_number(name, arguments[place], most)
    error = ctypes.c_void_p()
    status = getattr(LIBRARY, name)(*arguments, ctypes.byref(error))
    if status != 0:
        message = LIBRARY.jitmem_error_message(error).decode()
        failure = Error(status, message, LIBRARY.jitmem_error_os_code(error))
        LIBRARY.jitmem_error_free(error)
        raise failure


def version() -> str:
    """The version of the library that runs."""
    text: bytes = LIBRARY.jitmem_version_string()
    return text.decode()


def executor_program() -> str:
    """The path of jitmem-executor: JITMEM_EXECUTOR, the wheel's, or what PATH has by that name."""
    bundled = _HERE / "bin" / "jitmem-executor"
    return os.environ.get("JITMEM_EXECUTOR") or (str(bundled) if bundled.exists() else "jitmem-executor")
