// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <stdexcept>
#include <string>

int twice(int value);

int twice(int value) {
  if (value < 0)
    throw std::out_of_range("negative: " + std::to_string(value));
  return 2 * value;
}
