// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A child process that comes to the end of main: its exit code.
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
  pid_t child = fork();
  if (child == 0) {
    printf("child ");
    return 7;
  }
  int status = 0;
  waitpid(child, &status, 0);
  printf("parent");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}
