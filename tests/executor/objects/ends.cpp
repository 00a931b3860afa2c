// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Ends its process, or tries to, in the way that its argument names; `exits.c` has exit itself.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <unistd.h>

static volatile int zero;
static int *volatile nowhere = reinterpret_cast<int *>(16);

extern "C" int __cxa_at_quick_exit(void (*)(void *), void *);

static int deeper(int depth) {
  volatile char frame[4096] = {};
  return depth < 0 ? 0 : frame[0] + deeper(depth + 1) + frame[zero];
}

int main(int, char **argv) {
  const char *way = argv[0];
  auto is = [way](const char *word) { return !std::strcmp(way, word); };
  std::printf("buffered ");
  if (is("_exit"))
    _exit(3);
  if (is("quick_exit")) {
    __cxa_at_quick_exit([](void *) { std::fputs("quick\n", stderr); }, nullptr);
    std::quick_exit(4);
  }
  if (is("abort"))
    std::abort();
  if (is("segfault"))
    return *nowhere;
  if (is("segfault in a thread"))
    std::thread([] { *nowhere = 1; }).join();
  if (is("overflow"))
    return deeper(0);
  if (is("divide"))
    return zero / zero;
  if (is("trap"))
    __builtin_trap();
  if (is("kill"))
    kill(getpid(), SIGKILL);
  if (is("terminate"))
    raise(SIGTERM);
  if (is("throw"))
    throw std::runtime_error("not caught");
  if (is("throw in a thread"))
    std::thread([] { throw std::runtime_error("not caught"); }).join();
  return 1;
}
