// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

struct Problem {
  int Value;
};

extern "C" void throwProblem(int Value);
extern "C" void passOn(void (*Fn)(int), int Value);

extern "C" int catchProblem(int Value) {
  try {
    passOn(throwProblem, Value);
  } catch (const Problem &P) {
    return P.Value + 1000;
  }
  return -1;
}
