# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Runs a program that finds no pidfd_open, as before Linux 5.3: python3 without_pidfd.py PROGRAM ARGUMENT..."""

import ctypes
import errno
import os
import struct
import sys

PIDFD_OPEN = 434  # on every architecture
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
MODE_FILTER, ERRNO, ALLOW = 2, 0x00050000, 0x7FFF0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06

FILTER = [
    (LOAD, 0, 0, 0),
    (JUMP_IF_EQUAL, 0, 1, PIDFD_OPEN),
    (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    (RETURN, 0, 0, ALLOW),
]
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in FILTER))
program = struct.pack("HxxxxxxQ", len(FILTER), ctypes.addressof(code))
for option, *arguments in (
    (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    (PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(program), 0, 0),
):
    if libc.prctl(option, *arguments) != 0:
        sys.exit(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
