// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Exceptions from another object, in this thread and in others.
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

int twice(int value);

static int caught(int value) {
  try {
    return twice(value);
  } catch (const std::out_of_range &error) {
    return -1;
  }
}

int main() {
  int sum = caught(20);
  std::vector<std::thread> threads;
  int results[8];
  for (int i = 0; i < 8; i++)
    threads.emplace_back([i, &results] { results[i] = caught(i % 2 ? i : -i - 1); });
  for (auto &thread : threads)
    thread.join();
  for (int result : results)
    sum += result;
  try {
    twice(-7);
  } catch (const std::exception &error) {
    std::printf("%s, %d\n", error.what(), sum);
  }
  return sum;
}
