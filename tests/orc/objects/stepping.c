// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What calls the steps: frames of two linked objects, one above the other.
extern int linked_inner(int n);

int linked_outer(int n) {
  int first = linked_inner(n);
  int second = linked_inner(1);
  return first + second;
}

// For profilers.
int spin_millions(int millions) {
  unsigned sum = 0;
  for (long i = 0; i < 1000000L * millions; ++i)
    sum = sum * 31 + (unsigned)i;
  return (int)(sum & 1);
}
unsigned long spin(unsigned long rounds) {
  unsigned long sum = 0;
  for (unsigned long i = 0; i < rounds; ++i)
    sum = sum * 31 + i;
  return sum;
}
