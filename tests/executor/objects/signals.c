// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What a program finds of signals, and its own handlers: of one that it sends itself, and of an
// access that it comes back from.
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

static volatile sig_atomic_t seen;
static sigjmp_buf back;

static void note(int signal) { seen = signal; }

static void jump(int signal) { siglongjmp(back, signal); }

static int limited(int resource) {
  struct rlimit limit;
  getrlimit(resource, &limit);
  return limit.rlim_cur != RLIM_INFINITY;
}

int main(void) {
  sigset_t blocked;
  pthread_sigmask(SIG_BLOCK, NULL, &blocked);
  for (int signal = 1; signal < 32; signal++) {
    struct sigaction action;
    sigaction(signal, NULL, &action);
    // Who reports crashes may have taken these.
    int crash = signal == SIGSEGV || signal == SIGBUS || signal == SIGFPE || signal == SIGILL ||
                signal == SIGABRT || signal == SIGTRAP || signal == SIGSYS;
    // And these, where there is such a limit.
    int limit =
        (signal == SIGXCPU && limited(RLIMIT_CPU)) || (signal == SIGXFSZ && limited(RLIMIT_FSIZE));
    if (!crash && !limit && action.sa_handler != SIG_DFL)
      printf("%d is not at its default\n", signal);
    if (sigismember(&blocked, signal))
      printf("%d is blocked\n", signal);
  }
  struct sigaction action = {.sa_handler = note};
  sigaction(SIGUSR1, &action, NULL);
  raise(SIGUSR1);
  printf("%d\n", seen == SIGUSR1);
  action.sa_handler = jump;
  sigaction(SIGSEGV, &action, NULL);
  int signal = sigsetjmp(back, 1);
  if (!signal)
    return *(int *volatile)16;
  printf("%d\n", signal == SIGSEGV);
  return 42;
}
