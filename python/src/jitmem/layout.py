# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What lies where, and figures of a manager."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Optional

from . import _abi
from ._abi import CodeHint, LayoutKind, Lifetime, Phase, Protection, Status
from ._library import LIBRARY, Error

_FOUND = 1
_REFUSED = 2


@dataclass(frozen=True)
class LayoutItem:
    """A window, a chunk of the window before it, or a range handed out of the chunk before it."""

    address: int
    size: int
    kind: LayoutKind
    protection: Protection
    lifetime: Lifetime
    #: What its code is for.
    hint: CodeHint
    #: The handle of the allocation that a range belongs to, if that has a tag or a name; else 0.
    allocation: int


@dataclass(frozen=True)
class Location:
    """A segment of an allocation: first address and size in bytes, and whose it is."""

    allocation: int
    dylib: int
    tag: int
    address: int
    size: int
    protection: Protection
    lifetime: Lifetime
    phase: Phase


@dataclass(frozen=True)
class Stats:
    """Figures of one moment, as ``jitmem_stats`` in jitmem.h has them; sizes in bytes."""

    reserved: int
    committed: int
    live: int
    padding: int
    free: int
    mappings: int
    windows: int
    chunks: int
    in_flight: int
    finalized: int
    allocate_calls: int
    finalize_calls: int
    abandon_calls: int
    deallocate_calls: int
    failures: int
    system_calls: int
    span: int
    mapper: int
    fallbacks: int
    mapper_name: str
    fallback_reason: Optional[str]
    unmap_failures: int
    messages: int
    message_bytes: int
    chunk_bytes: int
    records: int
    waiting: int
    frozen: int
    answers_too_large: int
    answers_late: int
    answers_unexpected: int
    frames_found_by: int
    frames_indexed: int
    frames_registered: int
    huge_pages: int
    huge_pages_refused: int
    executor_restarts: int


def new_location() -> _abi.Location:
    """A place for the answer of a look-up."""
    return _abi.Location(struct_size=ctypes.sizeof(_abi.Location))


def location_of(found: _abi.Location) -> Location:
    """What a look-up found."""
    return Location(
        found.allocation,
        found.dylib,
        found.tag,
        found.address,
        found.size,
        Protection(found.protection),
        Lifetime(found.lifetime),
        Phase(found.phase),
    )


def item_of(item: _abi.LayoutItem) -> LayoutItem:
    """One piece that the library tells of."""
    kind, protection, lifetime = LayoutKind(item.kind), Protection(item.protection), Lifetime(item.lifetime)
    return LayoutItem(item.address, item.size, kind, protection, lifetime, CodeHint(item.code_hint), item.allocation)


def stats_of(stats: _abi.Stats) -> Stats:
    """The figures, with text as str."""
    values = {name: getattr(stats, name) for name, *_ in stats._fields_ if name != "struct_size"}
    reason = values["fallback_reason"]
    values["mapper_name"] = values["mapper_name"].decode()
    values["fallback_reason"] = None if reason is None else reason.decode()
    return Stats(**values)


def lookup(address: int) -> Optional[Location]:
    """The segment that an address of this process lies in, of whichever manager; None: of none."""
    _abi.check_number("look up an address", address, _abi.MOST[ctypes.c_uint64])
    location = new_location()
    found = LIBRARY.jitmem_lookup(address, ctypes.byref(location)) == _FOUND
    return location_of(location) if found else None


def lookup_in(manager: ctypes.c_void_p, address: int) -> Optional[Location]:
    """The same in one manager, by its handle; addresses are its executor's."""
    _abi.check_number("look up an address", address, _abi.MOST[ctypes.c_uint64])
    location = new_location()
    found = LIBRARY.jitmem_manager_lookup(manager, address, ctypes.byref(location))
    if found == _REFUSED:
        raise Error(Status.INVALID_HANDLE, "look up an address: the manager is closed, or the parent's", 0)
    return location_of(location) if found == _FOUND else None
