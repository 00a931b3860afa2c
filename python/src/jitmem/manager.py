# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Managers: memory for link graphs, from allocate to deallocate."""

from __future__ import annotations

import ctypes
import warnings
import weakref
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, Optional, Sequence, Type, cast

from . import _abi
from ._abi import CodeHint, Growth, InProcess, Lifetime, Placement, Protection
from ._library import LIBRARY, Error, call
from ._uses import Collector, Uses
from .layout import LayoutItem, Location, Stats, item_of, location_of, lookup_in, stats_of

if TYPE_CHECKING:
    from .executor import Executor


@dataclass(frozen=True)
class Segment:
    """What a graph needs of one protection: bytes that will be written, then zeros. ``alignment`` is a power of two."""

    protection: Protection
    content_size: int
    zero_fill_size: int = 0
    alignment: int = 16
    lifetime: Lifetime = Lifetime.STANDARD
    hint: CodeHint = CodeHint.NORMAL


@dataclass(frozen=True)
class WrapperCall:
    """A call of a wrapper function in the executor, at ``function``; 0: no call."""

    function: int = 0
    args: bytes = b""


@dataclass(frozen=True)
class Action:
    """A call on finalize, and its twin on deallocate."""

    finalize: WrapperCall = WrapperCall()
    dealloc: WrapperCall = WrapperCall()


class Allocation:
    """Finalized memory. It stays until :meth:`deallocate`, or until its manager is closed. As long as it is referred to, so is
    its manager."""

    def __init__(self, manager: Manager, handle: int, addresses: Sequence[int]) -> None:
        self._manager = manager
        self._live = True
        self.handle = handle
        #: For each segment its address in the executor.
        self.addresses = tuple(addresses)

    def function(self, result: Any, *arguments: Any, segment: int = 0, offset: int = 0) -> Callable[..., Any]:
        """A function of this process at an offset of a segment, by the ctypes types of its result and arguments.

        The code must be of that type, and must not be called once the allocation was deallocated or the manager closed. The
        function refers to the allocation. Raises ValueError if it lies in another process, or is gone already.
        """
        if not self._manager.in_this_process:
            raise ValueError("the code is in an executor: call it by Executor.run or Executor.call")
        if not self._live or not self._manager.handle:
            raise ValueError("the code is gone: its allocation was deallocated, or its manager closed")
        function: Any = ctypes.CFUNCTYPE(result, *arguments)(self.addresses[segment] + offset)
        function.allocation = self
        return cast(Callable[..., Any], function)

    def deallocate(self) -> None:
        """Runs the deallocation actions and frees the memory. No code of it may run any more."""
        self._manager.deallocate([self])

    def __enter__(self) -> Allocation:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.deallocate()


class InFlight:
    """Memory whose content is being written, by one thread at a time. Leaving its block abandons what is not finalized."""

    def __init__(self, manager: Manager, handle: int, addresses: Sequence[int]) -> None:
        self._manager = manager
        self._in_flight = True
        self.handle = handle
        #: For each segment its address in the executor, which references to it are resolved for.
        self.addresses = tuple(addresses)

    def write(self, segment: int, offset: int, content: bytes) -> None:
        """Writes bytes of a segment's content."""
        content = bytes(content)  # whatever the size of a buffer's items
        self._manager.call("jitmem_manager_write", self.handle, segment, offset, content, len(content))

    def finalize(self, actions: Iterable[Action] = ()) -> Allocation:
        """Makes the content visible and runs the finalize actions. If it fails the memory is free again."""
        listed = [_abi.Action(finalize=_wrapper(a.finalize), dealloc=_wrapper(a.dealloc)) for a in actions]
        self._in_flight = False
        array = (_abi.Action * len(listed))(*listed)
        self._manager.call("jitmem_manager_finalize", self.handle, array, len(listed))
        return Allocation(self._manager, self.handle, self.addresses)

    def abandon(self) -> None:
        """Gives the memory up."""
        self._in_flight = False
        self._manager.call("jitmem_manager_abandon", self.handle)

    def __enter__(self) -> InFlight:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._in_flight:
            self.abandon()


def _wrapper(wrapper: WrapperCall) -> _abi.WrapperCall:
    return _abi.WrapperCall(wrapper.function, wrapper.args, len(wrapper.args))


def _free_dropped(handle: c_void_p) -> None:
    if handle:
        LIBRARY.jitmem_manager_free(handle)
        why = "a jitmem.Manager was dropped, and is freed with all that is linked: close it, or keep it as long as its code"
        warnings.warn(why, ResourceWarning, stacklevel=3)


class Manager:
    """Divides memory of this process, or of an executor, among link graphs. Safe to use from any thread.

    ``executor`` None: this process, mapped as ``kind`` says. ``remote`` has content sent to the executor, which may
    then be on another machine; else pages are shared with it. The rest is as in ``jitmem_manager_options``; sizes are in bytes,
    and 0 is the default. ``window_size`` may be one of :class:`WindowSize`.

    One that is dropped, and not closed, is freed as by :meth:`close`, with a ResourceWarning. Allocations, and functions of them,
    refer to it; addresses do not.
    """

    def __init__(
        self,
        executor: Optional[Executor] = None,
        *,
        kind: InProcess = InProcess.AUTO,
        remote: bool = False,
        window_size: int = 0,
        placement: Placement = Placement.DEFAULT,
        address: int = 0,
        growth: Growth = Growth.ERROR,
        quota: int = 0,
    ) -> None:
        #: The C API's handle, for functions that this package does not have.
        self.handle = c_void_p()
        self._dropped = weakref.finalize(self, _free_dropped, self.handle)
        setattr(self._dropped, "atexit", False)  # other threads may run its code then
        self._uses = Uses()
        self.in_this_process = executor is None
        options = _abi.ManagerOptions(
            struct_size=ctypes.sizeof(_abi.ManagerOptions),
            window_size=window_size,
            address=address,
            quota=quota,
            placement=placement,
            growth=growth,
        )
        mapper = c_void_p()
        if executor is None:
            call("jitmem_mapper_in_process", kind, byref(mapper))
        else:
            name = "jitmem_mapper_remote" if remote else "jitmem_mapper_shared"
            executor.use(name, None, byref(mapper))
        try:
            call("jitmem_manager_create", mapper, byref(options), byref(self.handle))
        finally:
            LIBRARY.jitmem_mapper_free(mapper)
        if executor is not None:
            executor.managers.add(self)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the C API with this manager as its first argument; raises :class:`jitmem.Error` if it fails."""
        with self._uses:
            call(name, self._open(name), *arguments)

    def _open(self, name: str) -> c_void_p:
        """The handle; raises :class:`jitmem.Error` once the manager is closed."""
        handle = self.handle
        if not handle:
            raise Error(_abi.Status.INVALID_HANDLE, f"{name}: the manager is closed: make another one", 0)
        return handle

    def allocate(
        self,
        segments: Sequence[Segment],
        *,
        dylib: int = 0,
        tag: int = 0,
        name: Optional[str] = None,
        dylib_name: Optional[str] = None,
    ) -> InFlight:
        """Memory for the segments of one graph, all of it within reach of 32-bit references."""
        array = (_abi.Segment * len(segments))(
            *(
                _abi.Segment(s.content_size, s.zero_fill_size, s.alignment, s.protection, s.lifetime, s.hint)
                for s in segments
            )
        )
        request = _abi.AllocationRequest(
            struct_size=ctypes.sizeof(_abi.AllocationRequest),
            segments=array,
            segment_count=len(segments),
            dylib=dylib,
            tag=tag,
            name=None if name is None else _abi.c_name("the name of an allocation", name),
            dylib_name=None if dylib_name is None else _abi.c_name("the name of a JITDylib", dylib_name),
        )
        memory, handle = (_abi.SegmentMemory * len(segments))(), c_uint64()
        self.call("jitmem_manager_request", byref(request), memory, byref(handle))
        return InFlight(self, handle.value, [entry.address for entry in memory])

    def link(self, *segments: "tuple[Protection, bytes]") -> Allocation:
        """Allocates segments of content that needs no addresses, writes and finalizes them."""
        contents = [bytes(content) for _, content in segments]
        sizes = [Segment(protection, len(content)) for (protection, _), content in zip(segments, contents)]
        with self.allocate(sizes) as graph:
            for index, content in enumerate(contents):
                graph.write(index, 0, content)
            return graph.finalize()

    def deallocate(self, allocations: Sequence[Allocation]) -> None:
        """Deallocates several at once, last to first; all of them or, if one of them is none, nothing."""
        handles = (c_uint64 * len(allocations))(*(allocation.handle for allocation in allocations))
        self.call("jitmem_manager_deallocate", handles, len(allocations))
        for allocation in allocations:
            allocation._live = False

    def set_quota(self, quota: int) -> None:
        """The most bytes handed out at a time; 0: no limit."""
        self.call("jitmem_manager_set_quota", quota)

    def trim(self) -> int:
        """Gives back to the system what holds nothing; answers how many bytes that was."""
        given_back = c_uint64()
        self.call("jitmem_manager_trim", byref(given_back))
        return given_back.value

    def collapse(self) -> int:
        """Puts memory that is nearly full into huge pages; answers how many bytes that is."""
        huge = c_uint64()
        self.call("jitmem_manager_collapse", byref(huge))
        return huge.value

    def stats(self) -> Stats:
        """Figures of this moment."""
        stats = _abi.Stats(struct_size=ctypes.sizeof(_abi.Stats))
        self.call("jitmem_manager_stats", byref(stats))
        return stats_of(stats)

    def lookup(self, address: int) -> Optional[Location]:
        """The segment that an executor address lies in, or None."""
        with self._uses:
            return lookup_in(self.handle, address)

    def walk(self) -> List[Location]:
        """Every segment of every live allocation."""
        found = Collector(_abi.LOCATION_FN, lambda location: location_of(location.contents))
        self.call("jitmem_manager_walk", found.function, None)
        return found.results()

    def layout(self) -> List[LayoutItem]:
        """Windows, their chunks, and the ranges of these, in address order."""
        items = Collector(_abi.LAYOUT_FN, lambda item: item_of(item.contents))
        self.call("jitmem_manager_layout", items.function, None)
        return items.results()

    def wait_for_calls(self, timeout: Optional[float] = None) -> bool:
        """Waits until no call is under way; answers whether that came within ``timeout`` seconds."""
        return self._uses.wait_for_end(timeout)

    def close(self) -> None:
        """Waits for calls under way and frees the manager with all that is left in it. None of its code may run any more."""
        self.handle = c_void_p()
        self.wait_for_calls()
        # Only now: a close that Ctrl-C has ended while it waited can be called again.
        made = self._dropped.detach()
        if made is not None:
            LIBRARY.jitmem_manager_free(*made[2])

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
