// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Code as large as replaced.c's, which comes where that was.
int replacing(int n) { return n + 9; }
