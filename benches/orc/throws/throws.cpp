// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Throws, catches and takes the time, as linked code and in a shared library.

#include "hops.h"

#include <ctime>

hop way[HOPS + 1];

int throwHere(const void *) { throw 7; }

static long now() {
  timespec Now;
  clock_gettime(CLOCK_MONOTONIC, &Now);
  return Now.tv_sec * 1000000000 + Now.tv_nsec;
}

int timeOfThrow(int) {
  long Least = 1l << 30;
  for (int Round = 0; Round != ROUNDS; ++Round) {
    long Start = now();
    try {
      way[0](way + 1);
      return -1;
    } catch (int Thrown) {
      long Taken = now() - Start;
      if (Thrown != 7)
        return -1;
      Least = Taken < Least ? Taken : Least;
    }
  }
  return int(Least);
}
