// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A dynamic library: it says when it is loaded and when it goes.
#include <stdio.h>

int library_calls;

__attribute__((constructor)) static void arrive(void) { puts("loaded"); }
__attribute__((destructor)) static void leave(void) { puts("left"); }

int thrice(int value) {
  library_calls++;
  return 3 * value;
}
