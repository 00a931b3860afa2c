// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What walks up the stack through frames of other objects: hop(leaf, value) goes through many of
// them and calls the leaf.

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#include <unwind.h>

using Leaf = int (*)(int);

extern "C" int hop(Leaf, int);

static int Unwound = 0;

struct Cleanup {
  ~Cleanup() { ++Unwound; }
};

extern "C" int throwValue(int Value) { throw Value; }

extern "C" int catchFromHops(int Value) {
  try {
    return hop(throwValue, Value);
  } catch (int Caught) {
    return Caught + 1000;
  }
}

static int throwAgain(int Value) {
  Cleanup C;
  try {
    return hop(throwValue, Value);
  } catch (int) {
    throw;
  }
}

// Thrown, caught, thrown again through all frames once more; two cleanups.
extern "C" int catchThrownAgain(int Value) {
  Unwound = 0;
  try {
    Cleanup C;
    return hop(throwAgain, Value);
  } catch (int Caught) {
    return Caught + 1000 * Unwound;
  }
}

__attribute__((noinline)) static int countFrames(int) {
  int Frames = 0;
  auto Count = [](_Unwind_Context *, void *Counted) {
    ++*static_cast<int *>(Counted);
    return _URC_NO_REASON;
  };
  _Unwind_Backtrace(Count, &Frames);
  return Frames;
}

// How many frames a backtrace has from inside of all hops, less those that it has without them.
extern "C" int framesOfHops(int) { return hop(countFrames, 0) - countFrames(0); }

static int waitForCancel(int) {
  Cleanup C;
  for (;;)
    pthread_testcancel();
}

// The cleanups of a thread that is cancelled behind all hops: two.
extern "C" int cancelBehindHops(int) {
  Unwound = 0;
  auto Run = [](void *) -> void * {
    Cleanup C;
    hop(waitForCancel, 0);
    return nullptr;
  };
  pthread_t Thread;
  void *Result = nullptr;
  if (pthread_create(&Thread, nullptr, Run, nullptr) != 0)
    return -1;
  pthread_cancel(Thread);
  pthread_join(Thread, &Result);
  return Result == PTHREAD_CANCELED ? Unwound : -2;
}

// Threads that throw through all hops until they are told to stop.
static pthread_t Throwing[3];
static int Stop = 0, Right = 0, Wrong = 0;

extern "C" int startThrowing(int) {
  auto Run = [](void *) -> void * {
    do
      __atomic_add_fetch(catchFromHops(5) == 1005 ? &Right : &Wrong, 1, __ATOMIC_RELAXED);
    while (!__atomic_load_n(&Stop, __ATOMIC_RELAXED));
    return nullptr;
  };
  for (auto &Thread : Throwing)
    if (pthread_create(&Thread, nullptr, Run, nullptr) != 0)
      return -1;
  return 0;
}

// 1 if each throw was caught where it belongs.
extern "C" int stopThrowing(int) {
  __atomic_store_n(&Stop, 1, __ATOMIC_RELAXED);
  for (auto &Thread : Throwing)
    pthread_join(Thread, nullptr);
  return Wrong == 0 && Right > 0;
}

// What a child of a fork catches, once the parent has told it that it may go on.
static int Child = 0, Go[2];

extern "C" int startChild(int Value) {
  if (pipe(Go) != 0 || (Child = fork()) < 0)
    return -1;
  if (Child > 0)
    return Child;
  char Byte;
  _exit(read(Go[0], &Byte, 1) == 1 && catchFromHops(Value) == Value + 1000 ? 7 : 8);
}

extern "C" int endChild(int) {
  int Status = 0;
  if (write(Go[1], "", 1) != 1 || waitpid(Child, &Status, 0) != Child)
    return -1;
  return WIFEXITED(Status) ? WEXITSTATUS(Status) : -2;
}
