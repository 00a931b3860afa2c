#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A host in Python: machine code that calls back, then a function in a second process, and its crash."""

import ctypes
import platform

import jitmem

if platform.machine() == "aarch64":
    TWICE = bytes.fromhex("0000000bc0035fd6")  # add w0, w0, w0; ret
    TRAP = bytes.fromhex("000020d4")  # brk #0
    JUMP = bytes.fromhex("5000005800021fd6")  # ldr x16, #8; br x16
else:
    TWICE = bytes.fromhex("8d043fc3")  # lea eax, [rdi + rdi]; ret
    TRAP = bytes.fromhex("0f0b")  # ud2
    JUMP = bytes.fromhex("ff2500000000")  # jmp [rip]

TYPES = (ctypes.c_int, ctypes.c_int)


@ctypes.CFUNCTYPE(*TYPES)
def hear(number: int) -> int:
    print(f"  Python hears {number} from linked code")
    return number + 1


def in_this_process() -> None:
    with jitmem.Manager() as manager:
        # The address that is jumped to lies right behind the jump.
        code = JUMP + ctypes.cast(hear, ctypes.c_void_p).value.to_bytes(8, "little")
        with manager.link((jitmem.READ_EXEC, code)) as allocation:
            print(f"{manager.stats().mapper_name}:")
            print(f"  it answers {allocation.function(*TYPES)(41)}")
            print(f"  {jitmem.lookup(allocation.addresses[0])}")


def in_a_second_process() -> None:
    executor = jitmem.Executor()
    with jitmem.Manager(executor) as manager:
        print(f"{manager.stats().mapper_name}:")
        twice = manager.link((jitmem.READ_EXEC, TWICE)).addresses[0]
        print(f"  2 * 21 = {executor.run(twice, 21)}")
        trap = manager.link((jitmem.READ_EXEC, TRAP)).addresses[0]
        try:
            executor.run(trap, 0)
        except jitmem.Error as error:
            print(f"  {error}")
    print(f"  {executor.close()}")


if __name__ == "__main__":
    in_this_process()
    in_a_second_process()
