// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include <stdexcept>
#include <string>

struct Problem {
  int Value;
};

extern "C" void throwProblem(int Value) { throw Problem{Value}; }

extern "C" void throwError(int Value) {
  throw std::runtime_error("error " + std::to_string(Value));
}
