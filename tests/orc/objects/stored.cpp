// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What an image must hold: data that points to data, code and the C library, and calls to other
// objects.

#include <cstdlib>
#include <cstring>

static int Numbers[4] = {1, 2, 3, 4};
static int *Middle = &Numbers[2];
static const char *const Words[2] = {"seven", "thirteen"};
static int (*const Absolute)(int) = std::abs;
static int Zeros[1000];

extern "C" int catchProblem(int Value);
extern "C" int hostNumber;

// 3 + 8 + 20 + hostNumber + Value + 1000, and 1 more with each call.
extern "C" int useEverything(int Value) {
  Zeros[999]++;
  return *Middle + static_cast<int>(std::strlen(Words[1])) + Absolute(-20) + hostNumber +
         catchProblem(Value) + Zeros[999];
}
