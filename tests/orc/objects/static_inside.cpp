// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A variable that is made by the first call of its function, and destroyed at the end of its
// JITDylib.

namespace {
struct Number {
  explicit Number(int Value) : Value(Value) {}
  ~Number();
  int Value;
};
Number::~Number() { Value = -1; }
} // namespace

extern "C" int firstValue(int Value) {
  static Number First(Value);
  return First.Value;
}
