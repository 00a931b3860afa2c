# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Runs a program as on a kernel that lacks something: python3 without.py mdwe|landlock|pidfd|namespaces|chroot|passrights PROGRAM ARGUMENT..."""

import ctypes
import errno
import os
import struct
import sys

# The same numbers on every architecture, but for those of old.
PIDFD_OPEN, LANDLOCK_CREATE_RULESET = 434, 444
PRCTL, UNSHARE, CHROOT, SETSOCKOPT = {
    "x86_64": (157, 272, 161, 54),
    "aarch64": (167, 97, 51, 208),
}[os.uname().machine]
SO_PASSRIGHTS = 83
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 22, 38, 65
MODE_FILTER, ERRNO, ALLOW = 2, 0x00050000, 0x7FFF0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER, FIRST_ARGUMENT, THIRD_ARGUMENT = 0, 16, 32


def lacking(call, error=errno.ENOSYS):
    """A filter for a kernel without the call, or one that refuses it."""
    return [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 1, call),
        (RETURN, 0, 0, ERRNO | error),
        (RETURN, 0, 0, ALLOW),
    ]


FILTERS = {
    "pidfd": lacking(PIDFD_OPEN),
    "landlock": lacking(LANDLOCK_CREATE_RULESET),
    "namespaces": lacking(UNSHARE, errno.EPERM),
    "chroot": lacking(CHROOT, errno.EPERM),
    "passrights": [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 3, SETSOCKOPT),
        (LOAD, 0, 0, THIRD_ARGUMENT),
        (JUMP_IF_EQUAL, 0, 1, SO_PASSRIGHTS),
        (RETURN, 0, 0, ERRNO | errno.ENOPROTOOPT),
        (RETURN, 0, 0, ALLOW),
    ],
    "mdwe": [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 3, PRCTL),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 0, 1, PR_SET_MDWE),
        (RETURN, 0, 0, ERRNO | errno.EINVAL),
        (RETURN, 0, 0, ALLOW),
    ],
}
steps = FILTERS[sys.argv[1]]
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
for option, *arguments in (
    (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    (PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(program), 0, 0),
):
    if libc.prctl(option, *arguments) != 0:
        sys.exit(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[2], sys.argv[2:])
