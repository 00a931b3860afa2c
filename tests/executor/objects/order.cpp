// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Constructors and destructors by priority, and exit handlers among them.
#include <cstdio>
#include <cstdlib>

struct Said {
  const char *name;
  explicit Said(const char *name) : name(name) { std::printf("+%s ", name); }
  ~Said() { std::printf("-%s ", name); }
};

static Said third("third");
__attribute__((init_priority(300))) static Said second("second");
__attribute__((init_priority(200))) static Said first("first");
__attribute__((constructor(150))) static void before() { std::printf("constructor "); }
__attribute__((destructor)) static void after() { std::printf("destructor\n"); }

int main() {
  std::atexit([] { std::printf("handler "); });
  static Said local("local");
  std::printf("main ");
  return 42;
}
