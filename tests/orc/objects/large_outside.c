// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Of the large code model, with a GOT: what is in other objects and outside, and what is not.

#include <stdlib.h>

extern int hostNumber;
int largeAlone(int Value);

static const int Constants[3] = {100, 200, 300};
static int Counter = 1000;

static int next(void) { return ++Counter; }

// largeAlone(Value), hostNumber, 1000 and 1 more with each call, a constant, 7.
int largeOutside(int Value) {
  return largeAlone(Value) + hostNumber + next() + Constants[Value % 3] + abs(-7);
}
