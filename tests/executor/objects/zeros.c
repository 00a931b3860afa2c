// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// 64 MiB of zero-fill, all of it zero, all of it writable.
#include <stddef.h>

static unsigned char zeros[64 << 20];

int main(void) {
  unsigned sum = 0;
  for (size_t i = 0; i < sizeof zeros; i++)
    sum |= zeros[i];
  if (sum)
    return 1;
  zeros[0] = zeros[sizeof zeros - 1] = 21;
  return zeros[0] + zeros[sizeof zeros - 1];
}
