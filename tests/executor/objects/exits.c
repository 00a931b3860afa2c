// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Output and handlers of a program that ends its process.
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>

static void last(int code, void *word) { printf("%s %d\n", (const char *)word, code); }

int main(void) {
  on_exit(last, "last");
  printf("first ");
  exit(7);
}
