// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

static int Unwound = 0;

struct Cleanup {
  ~Cleanup() { ++Unwound; }
};

// An exception goes through this frame, and its landing pad runs the destructor.
extern "C" void passOn(void (*Fn)(int), int Value) {
  Cleanup C;
  Fn(Value);
}

extern "C" int framesUnwound() { return Unwound; }
