// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A few functions in x86-64 machine code, as a linker would lay them down.

#ifndef CODE_H
#define CODE_H

#include <stdint.h>
#include <string.h>

#ifndef __x86_64__
#error "the machine code in these tests is x86-64's"
#endif

enum { RETURN_SIZE = 6, LOAD_SIZE = 7, WRAPPER_SIZE = 14 };

// mov eax, value; ret
static inline void emit_return(void *out, uint32_t value) {
  uint8_t code[RETURN_SIZE] = {0xb8, 0, 0, 0, 0, 0xc3};
  memcpy(code + 1, &value, sizeof value);
  memcpy(out, code, sizeof code);
}

// mov eax, [rip + constant]; ret. Both are executor addresses; they must be in reach.
static inline void emit_load(void *out, uint64_t address, uint64_t constant) {
  uint8_t code[LOAD_SIZE] = {0x8b, 0x05, 0, 0, 0, 0, 0xc3};
  int32_t distance = (int32_t)(constant - (address + 6));
  memcpy(code + 2, &distance, sizeof distance);
  memcpy(out, code, sizeof code);
}

// A wrapper function that adds 1 to a counter and answers success:
// inc dword [rip + counter]; xor eax, eax; lea edx, [rax + 1]; ret; and room to align
static inline void emit_counting_wrapper(void *out, uint64_t address, uint64_t counter) {
  uint8_t code[WRAPPER_SIZE] = {0xff, 0x05, 0,    0,    0,    0,    0x31,
                                0xc0, 0x8d, 0x50, 0x01, 0xc3, 0xcc, 0xcc};
  int32_t distance = (int32_t)(counter - (address + 6));
  memcpy(code + 2, &distance, sizeof distance);
  memcpy(out, code, sizeof code);
}

// Runs a function that takes nothing and returns 32 bits.
static inline uint32_t run(uint64_t address) { return ((uint32_t (*)(void))(uintptr_t)address)(); }

#endif
