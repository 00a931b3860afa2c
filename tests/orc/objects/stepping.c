// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What calls the steps: frames of two linked objects, one above the other.
extern int linked_inner(int n);

int linked_outer(int n) {
  int first = linked_inner(n);
  int second = linked_inner(1);
  return first + second;
}

// For a profiler.
unsigned long spin(unsigned long rounds) {
  unsigned long sum = 0;
  for (unsigned long i = 0; i < rounds; ++i)
    sum = sum * 31 + i;
  return sum;
}
