// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Prints its arguments, changes them, and returns how many there are.
#include <stdio.h>

int main(int argc, char **argv) {
  for (int i = 0; i < argc; i++) {
    if (argv[i][0])
      argv[i][0] = '*';
    printf("<%s>", argv[i]);
  }
  printf(" %d\n", argv[argc] == NULL);
  return 40 + argc;
}
