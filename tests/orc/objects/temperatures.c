// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Functions of which the compiler knows how often they run.

static int Calls;
__attribute__((cold, noinline)) int rarely(int X) { return X - ++Calls; }
__attribute__((noinline)) int sometimes(int X) { return X + ++Calls; }
__attribute__((hot, noinline)) int often(int X) { return X * ++Calls; }
