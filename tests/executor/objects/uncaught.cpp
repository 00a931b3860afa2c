// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An exception that nobody catches: the C++ runtime says so and ends the process.
#include <stdexcept>

int main() { throw std::runtime_error("not caught"); }
