// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Asks for the process's number as 32-bit programs do.
#include <stdio.h>

int main(void) {
  puts("before");
  fflush(stdout);
#ifdef __x86_64__
  int number = 20;
  __asm__ volatile("int $0x80" : "+a"(number) : : "memory");
  printf("%d\n", number > 0);
#endif
  return 42;
}
