// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Functions without frame pointers, one above the other, for a profiler.
extern int chain_spin(int millions);

#define LINK(OUTER, INNER)                                                                         \
  __attribute__((noinline)) int OUTER(int millions) {                                              \
    volatile int room[4] = {1, 2, 3, 4};                                                           \
    int sum = INNER(millions);                                                                     \
    return sum + room[sum & 3];                                                                    \
  }

__attribute__((noinline)) int chain_spin(int millions) {
  unsigned sum = 0;
  for (long i = 0; i < 1000000L * millions; ++i) {
    sum = sum * 31 + (unsigned)i;
    __asm__ volatile("" : "+r"(sum));
  }
  return (int)(sum & 1);
}
LINK(chain_3, chain_spin)
LINK(chain_2, chain_3)
LINK(chain_1, chain_2)
LINK(chain_0, chain_1)
