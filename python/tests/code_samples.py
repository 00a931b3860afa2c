# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Machine code for the tests, as a compiler would have written it."""

import platform

if platform.machine() == "aarch64":
    ADD = bytes.fromhex("0000010bc0035fd6")  # add w0, w0, w1; ret
    TWICE = bytes.fromhex("0000000bc0035fd6")  # add w0, w0, w0; ret
    TRAP = bytes.fromhex("000020d4")  # brk #0
    LOOP = bytes.fromhex("00000014")  # b .
    _JUMP = bytes.fromhex("5000005800021fd6")  # ldr x16, #8; br x16
else:
    ADD = bytes.fromhex("8d0437c3")  # lea eax, [rdi + rsi]; ret
    TWICE = bytes.fromhex("8d043fc3")  # lea eax, [rdi + rdi]; ret
    TRAP = bytes.fromhex("0f0b")  # ud2
    LOOP = bytes.fromhex("ebfe")  # jmp .
    _JUMP = bytes.fromhex("ff2500000000")  # jmp [rip]


def jump_to(address):
    """Code that goes on at an address, with the arguments that it was called with."""
    return _JUMP + address.to_bytes(8, "little")
