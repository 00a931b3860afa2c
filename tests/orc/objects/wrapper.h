// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Wrapper functions: their arguments and results are bytes of Simple Packed Serialization.

#ifndef JITMEM_TESTS_ORC_WRAPPER_H
#define JITMEM_TESTS_ORC_WRAPPER_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct Result {
  union {
    char Bytes[sizeof(char *)];
    char *Pointer;
  } Data;
  size_t Size;
};

static inline struct Result resultOf(const void *Bytes, size_t Size) {
  struct Result R = {{{0}}, Size};
  if (Size > sizeof(R.Data.Bytes))
    R.Data.Pointer = malloc(Size);
  memcpy(Size > sizeof(R.Data.Bytes) ? R.Data.Pointer : R.Data.Bytes, Bytes, Size);
  return R;
}

static inline struct Result success(void) { return resultOf("", 1); }

#endif // JITMEM_TESTS_ORC_WRAPPER_H
