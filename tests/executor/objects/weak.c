// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A weak function that is nowhere, and one that is in libm alone.
double cbrt(double value);
int nowhere(void) __attribute__((weak));

int main(void) {
  static volatile double value = 74088;
  return nowhere ? 1 : (int)(cbrt(value) + 0.5);
}
