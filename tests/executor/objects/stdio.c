// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Numbers the lines of stdin on stdout, which are never flushed, and counts them on stderr.
#define _DEFAULT_SOURCE
#include <stdio.h>

int main(void) {
  char line[100];
  int count = 0;
  while (fgets(line, sizeof line, stdin))
    printf("%d: %s", ++count, line);
  fprintf(stderr, "%d lines\n", count);
  return count;
}
