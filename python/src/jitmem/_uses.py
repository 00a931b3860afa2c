# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What the C API leaves to its caller: nothing is freed under a call, and callbacks of Python's."""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType
from typing import Any, Callable, Generic, List, Optional, Type, TypeVar

T = TypeVar("T")


class Uses:
    """Calls under way with a handle, each in a block of its own."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_for_end(self, timeout: Optional[float] = None) -> bool:
        """Waits until no call is under way; answers whether that came within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout)


class Collector(Generic[T]):
    """What a callback of the library's is told of. Exceptions, Ctrl-C among them, wait for :meth:`results`, since
    ctypes prints what leaves a callback and goes on."""

    def __init__(self, function_type: Any, make: Callable[..., T]) -> None:
        self._found: List[T] = []
        self._failure: Optional[BaseException] = None

        def see(_: ctypes.c_void_p, *told: Any) -> None:
            try:
                self._found.append(make(*told))
            except BaseException as failure:
                self._failure = failure

        self.function = function_type(see)

    def results(self) -> List[T]:
        """All that was told, once the call is over."""
        if self._failure is not None:
            raise self._failure
        return self._found
