// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Constructors, destructors and thread-locals, which need the ORC runtime.
#include <cstdio>
#include <thread>

struct Said {
  const char *name;
  explicit Said(const char *name) : name(name) { std::printf("+%s ", name); }
  ~Said() {
    std::printf("-%s ", name);
    std::fflush(stdout);
  }
};

static Said global("global");
extern "C" int __cxa_thread_atexit(void (*)(void *), void *, void *);
extern "C" void *__dso_handle;

// JITLink knows no thread-locals that are one object's own, and the compiler's guard of a
// thread-local with a destructor would be one.
extern thread_local int count;
thread_local int count = 20;

static void destroy(void *name) {
  std::printf("-%s ", static_cast<const char *>(name));
  std::fflush(stdout);
}

static void construct(const char *name) {
  __cxa_thread_atexit(destroy, const_cast<char *>(name), &__dso_handle);
  std::printf("+%s ", name);
}

int main() {
  construct("main's");
  std::thread([] {
    construct("thread's");
    count += 1;
  }).join();
  count += 1;
  std::printf("main ");
  return 2 * count;
}
