// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Wrapper functions with LLVM's CWrapperFunctionResult ABI, and actions made of them.

#ifndef WRAPPER_H
#define WRAPPER_H

#include "harness.h"

// Up to 8 bytes are inline, more are in a block from malloc. Size 0 with a pointer: an out-of-band
// error, its text from malloc.
struct wrapper_result {
  union {
    char *pointer;
    char bytes[8];
  } data;
  size_t size;
};

typedef struct wrapper_result wrapper_function(const char *args, size_t size);

// A serialized success: the bool "has error" is false.
static inline struct wrapper_result succeed(void) {
  return (struct wrapper_result){.data = {.bytes = {0}}, .size = 1};
}

// A serialized error: true, the length in 8 bytes, the text.
static inline struct wrapper_result fail_with(const char *text) {
  uint64_t length = strlen(text);
  char *block = malloc(9 + length);
  if (block == NULL)
    abort();
  block[0] = 1;
  memcpy(block + 1, &length, sizeof length);
  memcpy(block + 9, text, length);
  return (struct wrapper_result){.data = {.pointer = block}, .size = 9 + length};
}

static inline jitmem_wrapper_call call_of(wrapper_function *function, const void *args,
                                          size_t size) {
  return (jitmem_wrapper_call){.function = (uintptr_t)function, .args = args, .args_size = size};
}

#endif
