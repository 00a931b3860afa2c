// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// As many functions as a way has, in a shared library.

#include "hops.h"

#include <utility>

template <int N> static int libraryHop(const void *Way) {
  auto *Next = static_cast<const hop *>(Way);
  // No two are the same function.
  asm volatile("" : : "i"(N));
  return (*Next)(Next + 1) + 1;
}

template <int... N> static void fill(std::integer_sequence<int, N...>) {
  const hop Hops[] = {libraryHop<N>...};
  for (int I = 0; I != HOPS; ++I)
    way[I] = Hops[I];
  way[HOPS] = throwHere;
}

__attribute__((constructor)) static void fillWay() {
  fill(std::make_integer_sequence<int, HOPS>());
}
