// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// An address in 4 bytes.
__asm__(".data\n"
        ".globl narrow\n"
        "narrow: .long low\n"
        ".text\n");
