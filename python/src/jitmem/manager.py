# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Managers: memory for link graphs, from allocate to deallocate."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, Optional, Sequence, Type

from . import _abi
from ._abi import Growth, InProcess, Lifetime, Placement, Protection
from ._library import LIBRARY, call
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
    """Finalized memory. It stays until :meth:`deallocate`, or until its manager is closed."""

    def __init__(self, manager: Manager, handle: int, addresses: Sequence[int]) -> None:
        self._manager = manager
        self.handle = handle
        #: For each segment its address in the executor.
        self.addresses = tuple(addresses)

    def function(self, result: Any, *arguments: Any, segment: int = 0, offset: int = 0) -> Callable[..., Any]:
        """A function of this process at an offset of a segment, by the ctypes types of its result and arguments.

        The code must be of that type, and must not be called once the allocation or the manager is gone.
        """
        return ctypes.CFUNCTYPE(result, *arguments)(self.addresses[segment] + offset)

    def deallocate(self) -> None:
        """Runs the deallocation actions and frees the memory. No code of it may run any more."""
        call("jitmem_manager_deallocate", self._manager.handle, byref(c_uint64(self.handle)), 1)

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
        arguments = segment, offset, bytes(content), len(content)
        call("jitmem_manager_write", self._manager.handle, self.handle, *arguments)

    def finalize(self, actions: Iterable[Action] = ()) -> Allocation:
        """Makes the content visible and runs the finalize actions. If it fails the memory is free again."""
        listed = [_abi.Action(finalize=_wrapper(a.finalize), dealloc=_wrapper(a.dealloc)) for a in actions]
        self._in_flight = False
        array = (_abi.Action * len(listed))(*listed)
        call("jitmem_manager_finalize", self._manager.handle, self.handle, array, len(listed))
        return Allocation(self._manager, self.handle, self.addresses)

    def abandon(self) -> None:
        """Gives the memory up."""
        self._in_flight = False
        call("jitmem_manager_abandon", self._manager.handle, self.handle)

    def __enter__(self) -> InFlight:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._in_flight:
            self.abandon()


def _wrapper(wrapper: WrapperCall) -> _abi.WrapperCall:
    return _abi.WrapperCall(wrapper.function, wrapper.args, len(wrapper.args))


class Manager:
    """Divides memory of this process, or of an executor, among link graphs. Safe to use from any thread.

    ``executor`` None: this process, mapped as ``kind`` says. ``remote`` has content sent to the executor, which may
    then be on another machine; else pages are shared with it. The rest is as in ``jitmem_manager_options``; sizes are in bytes,
    and 0 is the default. ``window_size`` may be one of :class:`WindowSize`.
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
            call(name, executor.transport, None, byref(mapper))
        try:
            call("jitmem_manager_create", mapper, byref(options), byref(self.handle))
        finally:
            LIBRARY.jitmem_mapper_free(mapper)

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
            *(_abi.Segment(s.content_size, s.zero_fill_size, s.alignment, s.protection, s.lifetime) for s in segments)
        )
        request = _abi.AllocationRequest(
            struct_size=ctypes.sizeof(_abi.AllocationRequest),
            segments=array,
            segment_count=len(segments),
            dylib=dylib,
            tag=tag,
            name=None if name is None else name.encode(),
            dylib_name=None if dylib_name is None else dylib_name.encode(),
        )
        memory, handle = (_abi.SegmentMemory * len(segments))(), c_uint64()
        call("jitmem_manager_request", self.handle, byref(request), memory, byref(handle))
        return InFlight(self, handle.value, [entry.address for entry in memory])

    def link(self, *segments: "tuple[Protection, bytes]") -> Allocation:
        """Allocates segments of content that needs no addresses, writes and finalizes them."""
        with self.allocate([Segment(protection, len(content)) for protection, content in segments]) as graph:
            for index, (_, content) in enumerate(segments):
                graph.write(index, 0, content)
            return graph.finalize()

    def deallocate(self, allocations: Sequence[Allocation]) -> None:
        """Deallocates several at once, last to first; all of them or, if one of them is none, nothing."""
        handles = (c_uint64 * len(allocations))(*(allocation.handle for allocation in allocations))
        call("jitmem_manager_deallocate", self.handle, handles, len(allocations))

    def set_quota(self, quota: int) -> None:
        """The most bytes handed out at a time; 0: no limit."""
        call("jitmem_manager_set_quota", self.handle, quota)

    def trim(self) -> int:
        """Gives back to the system what holds nothing; answers how many bytes that was."""
        given_back = c_uint64()
        call("jitmem_manager_trim", self.handle, byref(given_back))
        return given_back.value

    def collapse(self) -> int:
        """Puts memory that is nearly full into huge pages; answers how many bytes that is."""
        huge = c_uint64()
        call("jitmem_manager_collapse", self.handle, byref(huge))
        return huge.value

    def stats(self) -> Stats:
        """Figures of this moment."""
        stats = _abi.Stats(struct_size=ctypes.sizeof(_abi.Stats))
        call("jitmem_manager_stats", self.handle, byref(stats))
        return stats_of(stats)

    def lookup(self, address: int) -> Optional[Location]:
        """The segment that an executor address lies in, or None."""
        return lookup_in(self.handle, address)

    def walk(self) -> List[Location]:
        """Every segment of every live allocation."""
        found: List[Location] = []
        see = _abi.LOCATION_FN(lambda _, location: found.append(location_of(location.contents)))
        call("jitmem_manager_walk", self.handle, see, None)
        return found

    def layout(self) -> List[LayoutItem]:
        """Windows, their chunks, and the ranges of these, in address order."""
        items: List[LayoutItem] = []
        see = _abi.LAYOUT_FN(lambda _, item: items.append(item_of(item.contents)))
        call("jitmem_manager_layout", self.handle, see, None)
        return items

    def close(self) -> None:
        """Frees the manager with all that is left in it. None of its code may run any more."""
        handle, self.handle = self.handle, c_void_p()
        LIBRARY.jitmem_manager_free(handle)

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
