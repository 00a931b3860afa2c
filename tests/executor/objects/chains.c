// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A handler that calls the one that was there before it, as language runtimes' do.
#define _DEFAULT_SOURCE
#include <signal.h>
#include <stdio.h>

static struct sigaction before;

static void forward(int signal, siginfo_t *info, void *context) {
  static volatile int calls;
  if (++calls > 3)
    __builtin_trap();
  if (before.sa_flags & SA_SIGINFO)
    before.sa_sigaction(signal, info, context);
  else
    sigaction(signal, &before, NULL);
}

int main(void) {
  struct sigaction action = {.sa_sigaction = forward, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, &before);
  return *(int *volatile)16;
}
