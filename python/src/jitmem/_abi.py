# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""jitmem.h for ctypes: the structs, enumerations and functions that this package uses.

python/tests/test_abi.py has a C compiler compare sizes, offsets, numbers and function types with the header.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Dict, List, Tuple


class Status(IntEnum):
    """Why a call failed."""

    INVALID_ARGUMENT = 1
    INVALID_HANDLE = 2
    WINDOW_FULL = 3
    QUOTA_EXCEEDED = 4
    OUT_OF_MEMORY = 5
    DENIED = 6
    ACTION_FAILED = 7
    UNSUPPORTED = 8
    DISCONNECTED = 9
    MAPPER_FAILED = 10
    SYSTEM = 11
    INTERNAL = 12
    WOULD_BLOCK = 13
    TIMED_OUT = 14
    CANCELLED = 15


class InProcess(IntEnum):
    """How this process's memory is mapped."""

    AUTO = 0
    TWO_VIEWS = 1
    MPROTECT = 2
    IN_PLACE = 3


class Protection(IntFlag):
    """What linked code may do with a segment. Writable and executable together is refused."""

    READ = 1
    WRITE = 2
    EXEC = 4


class Lifetime(IntEnum):
    """How long a segment lives."""

    STANDARD = 0
    FINALIZE = 1
    NO_ALLOC = 2


class CodeHint(IntEnum):
    """What the code of a segment is for. Code of one hint lies together."""

    NORMAL = 0
    HOT = 1
    COLD = 2
    STUB = 3


class Placement(IntEnum):
    """Where the first window goes."""

    DEFAULT = 0
    NEAR = 1
    FIXED = 2


class WindowSize(IntEnum):
    """Sizes of windows that have a name."""

    BRANCH_REACH = 128 << 20


class Growth(IntEnum):
    """What happens when the window is full."""

    ERROR = 0
    ANOTHER_WINDOW = 1


class Phase(IntEnum):
    """How far an allocation has come."""

    IN_FLIGHT = 1
    FINALIZING = 2
    FINALIZED = 3
    ENDING = 4
    DEALLOCATED = 5
    CHANGING = 6


class MapperKind(IntEnum):
    """Where a manager's memory comes from."""

    TWO_VIEWS = 1
    MPROTECT = 2
    CUSTOM = 3
    SHARED = 4
    REMOTE = 5
    LLVM_SHARED = 6
    LLVM_SIMPLE = 7
    IN_PLACE = 8


class LayoutKind(IntEnum):
    """What a piece of the layout is."""

    WINDOW = 0
    CHUNK = 1
    RANGE = 2


ENUMS = {
    "JITMEM_": Status,
    "JITMEM_IN_PROCESS_": InProcess,
    "JITMEM_PROT_": Protection,
    "JITMEM_LIFETIME_": Lifetime,
    "JITMEM_CODE_": CodeHint,
    "JITMEM_PLACEMENT_": Placement,
    "JITMEM_WINDOW_SIZE_": WindowSize,
    "JITMEM_GROWTH_": Growth,
    "JITMEM_PHASE_": Phase,
    "JITMEM_MAPPER_": MapperKind,
    "JITMEM_LAYOUT_": LayoutKind,
}


# The largest number of each type that has one.
MOST = {kind: (1 << 8 * ctypes.sizeof(kind)) - 1 for kind in (c_uint32, c_uint64, c_size_t)}


def check_number(what: str, value: Any, most: int, least: int = 0) -> None:
    """Raises OverflowError for a number that ctypes would cut to the size of its place. What is no number is left to ctypes."""
    if isinstance(value, int) and not least <= value <= most:
        raise OverflowError(f"{what}: {value} is out of range: pass a number from {least} to {most}")


def c_name(what: str, name: str) -> bytes:
    """A name as C has it. Raises ValueError for one that would end early there."""
    if "\0" in name:
        raise ValueError(f"{what}: {name!r} has a NUL, which ends a name in C: pass one without it")
    return name.encode()


_set = ctypes.Structure.__setattr__


class Struct(ctypes.Structure):
    """A struct whose numbers are checked when they are set."""

    _most: ClassVar[Dict[str, int]]

    def __init_subclass__(cls) -> None:
        cls._most = {name: MOST[kind] for name, kind in cls.__dict__["_fields_"] if kind in MOST}

    def __setattr__(self, name: str, value: Any) -> None:
        most = self._most.get(name)
        # Tested here too, since calls of Python are slow and most numbers fit.
        if most is not None and isinstance(value, int) and not 0 <= value <= most:
            check_number(f"{type(self).__name__}.{name}", value, most)
        _set(self, name, value)


class ManagerOptions(Struct):
    _fields_ = [
        ("struct_size", c_size_t),
        ("window_size", c_uint64),
        ("address", c_uint64),
        ("quota", c_uint64),
        ("placement", c_uint32),
        ("growth", c_uint32),
        ("commit", c_uint32),
        ("close_writers", c_uint32),
        ("addresses", c_void_p),
        ("address_count", c_size_t),
        ("observer", c_void_p),
        ("usage", c_uint32),
        ("defer_reclamation", c_uint32),
        ("fork_policy", c_uint32),
        ("huge_pages", c_uint32),
    ]


class Segment(Struct):
    _fields_ = [
        ("content_size", c_uint64),
        ("zero_fill_size", c_uint64),
        ("alignment", c_uint64),
        ("protection", c_uint32),
        ("lifetime", c_uint32),
        ("code_hint", c_uint32),
        ("reserved", c_uint32 * 3),
    ]


class SegmentMemory(Struct):
    _fields_ = [("address", c_uint64), ("working_memory", c_void_p), ("reserved", c_uint64 * 2)]


class WrapperCall(Struct):
    _fields_ = [("function", c_uint64), ("args", c_char_p), ("args_size", c_size_t)]


class Action(Struct):
    _fields_ = [("finalize", WrapperCall), ("dealloc", WrapperCall), ("reserved", c_uint64 * 2)]


class AllocationRequest(Struct):
    _fields_ = [
        ("struct_size", c_size_t),
        ("segments", POINTER(Segment)),
        ("segment_count", c_size_t),
        ("dylib", c_uint64),
        ("tag", c_uint64),
        ("name", c_char_p),
        ("dylib_name", c_char_p),
    ]


class Location(Struct):
    _fields_ = [
        ("struct_size", c_size_t),
        ("manager", c_void_p),
        ("allocation", c_uint64),
        ("dylib", c_uint64),
        ("tag", c_uint64),
        ("address", c_uint64),
        ("size", c_uint64),
        ("protection", c_uint32),
        ("lifetime", c_uint32),
        ("phase", c_uint32),
        ("reserved", c_uint32),
    ]


class Stats(Struct):
    _fields_ = [
        ("struct_size", c_size_t),
        ("reserved", c_uint64),
        ("committed", c_uint64),
        ("live", c_uint64),
        ("padding", c_uint64),
        ("free", c_uint64),
        ("mappings", c_uint64),
        ("windows", c_uint64),
        ("chunks", c_uint64),
        ("in_flight", c_uint64),
        ("finalized", c_uint64),
        ("allocate_calls", c_uint64),
        ("finalize_calls", c_uint64),
        ("abandon_calls", c_uint64),
        ("deallocate_calls", c_uint64),
        ("failures", c_uint64),
        ("system_calls", c_uint64),
        ("span", c_uint64),
        ("mapper", c_uint32),
        ("fallbacks", c_uint32),
        ("mapper_name", c_char_p),
        ("fallback_reason", c_char_p),
        ("unmap_failures", c_uint64),
        ("messages", c_uint64),
        ("message_bytes", c_uint64),
        ("chunk_bytes", c_uint64),
        ("records", c_uint64),
        ("waiting", c_uint64),
        ("frozen", c_uint64),
        ("answers_too_large", c_uint64),
        ("answers_late", c_uint64),
        ("answers_unexpected", c_uint64),
        ("frames_found_by", c_uint64),
        ("frames_indexed", c_uint64),
        ("frames_registered", c_uint64),
        ("huge_pages", c_uint64),
        ("huge_pages_refused", c_uint64),
        ("executor_restarts", c_uint64),
    ]


class LayoutItem(Struct):
    _fields_ = [
        ("address", c_uint64),
        ("size", c_uint64),
        ("kind", c_uint32),
        ("protection", c_uint32),
        ("lifetime", c_uint32),
        ("code_hint", c_uint32),
        ("allocation", c_uint64),
        ("reserved", c_uint32 * 2),
    ]


STRUCTS = {
    "jitmem_manager_options": ManagerOptions,
    "jitmem_segment": Segment,
    "jitmem_segment_memory": SegmentMemory,
    "jitmem_wrapper_call": WrapperCall,
    "jitmem_action": Action,
    "jitmem_allocation_request": AllocationRequest,
    "jitmem_location": Location,
    "jitmem_stats": Stats,
    "jitmem_layout_item": LayoutItem,
}

BYTES_FN = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)
LAYOUT_FN = CFUNCTYPE(None, c_void_p, POINTER(LayoutItem))
LOCATION_FN = CFUNCTYPE(None, c_void_p, POINTER(Location))

# Those that can fail: they return a status, and their last argument, which is not listed, is a place for an error.
FALLIBLE: Dict[str, List[Any]] = {
    "jitmem_mapper_in_process": [c_uint32, POINTER(c_void_p)],
    "jitmem_mapper_shared": [c_void_p, c_void_p, POINTER(c_void_p)],
    "jitmem_mapper_remote": [c_void_p, c_void_p, POINTER(c_void_p)],
    "jitmem_manager_create": [c_void_p, POINTER(ManagerOptions), POINTER(c_void_p)],
    "jitmem_manager_set_quota": [c_void_p, c_uint64],
    "jitmem_manager_request": [c_void_p, POINTER(AllocationRequest), POINTER(SegmentMemory), POINTER(c_uint64)],
    "jitmem_manager_write": [c_void_p, c_uint64, c_size_t, c_uint64, c_char_p, c_size_t],
    "jitmem_manager_finalize": [c_void_p, c_uint64, POINTER(Action), c_size_t],
    "jitmem_manager_abandon": [c_void_p, c_uint64],
    "jitmem_manager_deallocate": [c_void_p, POINTER(c_uint64), c_size_t],
    "jitmem_manager_trim": [c_void_p, POINTER(c_uint64)],
    "jitmem_manager_collapse": [c_void_p, POINTER(c_uint64)],
    "jitmem_manager_stats": [c_void_p, POINTER(Stats)],
    "jitmem_manager_walk": [c_void_p, LOCATION_FN, c_void_p],
    "jitmem_manager_layout": [c_void_p, LAYOUT_FN, c_void_p],
    "jitmem_transport_socket": [c_int32, POINTER(c_void_p)],
    "jitmem_transport_call": [c_void_p, c_uint64, c_char_p, c_size_t, BYTES_FN, c_void_p],
    "jitmem_transport_symbol": [c_void_p, c_char_p, POINTER(c_uint64)],
}

# Those that can't: what they return, and their arguments.
INFALLIBLE: Dict[str, Tuple[Any, List[Any]]] = {
    "jitmem_version": (c_uint32, []),
    "jitmem_version_string": (c_char_p, []),
    "jitmem_error_message": (c_char_p, [c_void_p]),
    "jitmem_error_os_code": (c_int32, [c_void_p]),
    "jitmem_error_free": (None, [c_void_p]),
    "jitmem_status_name": (c_char_p, [c_uint32]),
    "jitmem_mapper_free": (None, [c_void_p]),
    "jitmem_manager_free": (None, [c_void_p]),
    "jitmem_transport_free": (None, [c_void_p]),
    "jitmem_lookup": (c_uint32, [c_uint64, POINTER(Location)]),
    "jitmem_manager_lookup": (c_uint32, [c_void_p, c_uint64, POINTER(Location)]),
}
