// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Of the large code model, with nothing that is outside: the GOT has no entries, and is at 0 for
// JITLink.

static int Counter = 40;
static int (*volatile Function)(int);

static int add(int Value) { return ++Counter + Value; }

// 40 and 1 more with each call, and Value.
int largeAlone(int Value) {
  Function = add;
  return Function(Value);
}
