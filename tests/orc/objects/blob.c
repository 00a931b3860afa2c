// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Bytes between two symbols, as assemblers include files: the second one is behind the last byte.

__asm__(".section .rodata\n"
        ".globl blob, blobEnd\n"
        "blob: .quad 1, 2\n"
        "blobEnd:\n"
        ".text\n");

extern const char blob[], blobEnd[];

int blobSize(int Less) { return (int)(blobEnd - blob) - Less; }
