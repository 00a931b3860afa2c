// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Alignments above a page.
static _Alignas(65536) char Buffer[100] = "aligned";
static _Alignas(16384) char Zeros[100];

char *alignedBuffer(void) { return Buffer; }
char *alignedZeros(void) { return Zeros; }
