// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Runs C++ constructors and destructors as allocation actions, without a runtime.

#include "wrapper.h"

static struct {
  void (*Destroy)(void *);
  void *Object;
} Destructors[64];
static size_t DestructorCount;

// What the compiler has constructors call, for the destructors to come.
char __dso_handle;
int __cxa_atexit(void (*Destroy)(void *), void *Object, void *Dso) {
  (void)Dso;
  if (DestructorCount == sizeof(Destructors) / sizeof(*Destructors))
    return -1;
  Destructors[DestructorCount].Destroy = Destroy;
  Destructors[DestructorCount++].Object = Object;
  return 0;
}

// Error(uint64_t Start, uint64_t Size): calls the functions of an .init_array.
struct Result runConstructors(const char *Args, size_t Size) {
  uint64_t Range[2] = {0, 0};
  if (Size == sizeof(Range))
    memcpy(Range, Args, sizeof(Range));
  void (**Constructors)(void) = (void (**)(void))(uintptr_t)Range[0];
  for (uint64_t I = 0; I != Range[1] / sizeof(*Constructors); ++I)
    Constructors[I]();
  return success();
}

// Error()
struct Result runDestructors(const char *Args, size_t Size) {
  (void)Args;
  (void)Size;
  while (DestructorCount) {
    --DestructorCount;
    Destructors[DestructorCount].Destroy(Destructors[DestructorCount].Object);
  }
  return success();
}
