// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Code that is freed while a forked child may still run it.
int replaced(int n) { return n + 7; }
