// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A child that ends in order, one that is killed, and a command.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int ended(int kill_it) {
  fflush(stdout);
  pid_t child = fork();
  if (!child) {
    if (kill_it)
      raise(SIGKILL);
    printf("child ");
    exit(5);
  }
  int status;
  waitpid(child, &status, 0);
  return status;
}

int main(void) {
  int first = ended(0), second = ended(1);
  printf("%d ", WEXITSTATUS(first));
  printf("%d ", WTERMSIG(second));
  fflush(stdout);
  int third = system("echo command; exit 6");
  printf("%d\n", WEXITSTATUS(third));
  return 42;
}
