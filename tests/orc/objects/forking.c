// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Linked code that forks: functions that controllers call by their type int(int), and a wrapper
// function.

#define _GNU_SOURCE
#include "wrapper.h"

#include <sys/wait.h>
#include <unistd.h>

enum { Many = 1 << 18 };
static volatile int Number = 1;
static volatile int Numbers[Many]; // 1 MiB of zeros

// How a child ended: what it answered, or 128 and the signal.
static int answerOf(pid_t Child) {
  int Status;
  if (Child < 0 || waitpid(Child, &Status, 0) != Child)
    return -1;
  return WIFEXITED(Status) ? WEXITSTATUS(Status) : 128 + WTERMSIG(Status);
}

// ---- A child that goes on for a while ----

static pid_t Child;
static int ToChild[2], FromChild[2];

// startChild(pointer): once it may go on, the child answers what the function says of 1.
struct Result startChild(const char *Args, size_t Size) {
  int (*Function)(int);
  char Byte = 0;
  if (Size != sizeof(Function) || pipe(ToChild) != 0 || pipe(FromChild) != 0)
    return resultOf("pipe", 4);
  memcpy(&Function, Args, Size);
  Number = 2;
  Numbers[Many - 1] = 2;
  Child = fork();
  if (Child == 0) {
    int AsTheyWere = Number == 2 && Numbers[Many - 1] == 2 && Numbers[0] == 0;
    Number = 3;
    Numbers[0] = 3;
    close(ToChild[1]);
    if (write(FromChild[1], &Byte, 1) != 1 || read(ToChild[0], &Byte, 1) != 1)
      _exit(100);
    _exit(AsTheyWere && Number == 3 && Numbers[0] == 3 ? Function(1) : 101);
  }
  close(FromChild[1]);
  close(ToChild[0]);
  // What the child has written is not seen, nor is what comes now by the child.
  if (Child < 0 || read(FromChild[0], &Byte, 1) != 1 || Number != 2 || Numbers[0] != 0)
    return resultOf("seen", 4);
  Number = 4;
  Numbers[0] = 4;
  return success();
}

// Lets it go on, and says how it ended.
int childsAnswer(int Unused) {
  char Byte = (char)Unused;
  if (write(ToChild[1], &Byte, 1) != 1)
    return -1;
  close(ToChild[1]);
  close(FromChild[0]);
  return answerOf(Child);
}

// ---- Many children ----

// How many of that many children did not find what their parent had written before, or were seen by
// it. Each second one has a child of its own.
int children(int Count) {
  int Wrong = 0;
  for (int I = 1; I <= Count; ++I) {
    Number = I;
    Numbers[I % Many] = I;
    pid_t Process = fork();
    if (Process == 0) {
      int Right = Number == I && Numbers[I % Many] == I;
      Number = -1;
      Numbers[I % Many] = -1;
      if (Right && I % 2) {
        pid_t Next = fork();
        if (Next == 0) {
          Right = Number == -1;
          Number = -2;
          _exit(Right ? 0 : 1);
        }
        Right = answerOf(Next) == 0 && Number == -1;
      }
      _exit(Right ? 0 : 1);
    }
    Wrong += answerOf(Process) != 0 || Number != I || Numbers[I % Many] != I;
  }
  return Wrong;
}
