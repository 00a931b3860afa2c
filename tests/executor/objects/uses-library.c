// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Calls a function of a library that was loaded for it.
#include <stdio.h>

int thrice(int value);
extern int library_calls;

int main(void) {
  int value = thrice(14);
  printf("%d %d\n", value, library_calls);
  return value;
}
