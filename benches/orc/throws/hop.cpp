// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One function of the way, which is linked under many names.

#include "hops.h"

extern "C" int hop_000000(const void *Way);

int hop_000000(const void *Way) {
  auto *Next = static_cast<const hop *>(Way);
  return (*Next)(Next + 1) + 1;
}
